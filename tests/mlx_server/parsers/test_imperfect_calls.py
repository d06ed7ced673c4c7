"""Calls as models write them at times: a mark left out or doubled, other quotes, a namespace, tags inside of values."""

import json
from typing import Any

import pytest

from mlx_manager.mlx_server.parsers import detect
from mlx_manager.mlx_server.parsers.formats import OutputFormat
from mlx_manager.mlx_server.parsers.pieces import (
    Piece,
    Reasoning,
    Text,
    Tool,
    ToolCallArguments,
    ToolCallBroken,
    ToolCallEnd,
    ToolCallStart,
)
from tests.mlx_server.parsers.outputs import DEEPSEEK_END, THINKING, broken, call, parse

WRITE = Tool(
    "write",
    {"type": "object", "properties": {"text": {"type": "string"}, "limit": {"type": "integer"}, "tag": {}}},
)
GET = Tool("get", {"type": "object", "properties": {}})
TOOLS = (WRITE, GET)
PROMPTED = detect.prompted_format(detect.PLAIN)
BOTH = '{"text": "abc", "limit": 5}'
ABC = '{"text": "abc"}'
Q = '<|"|>'


def write(arguments: str) -> list[Piece]:
    return call(arguments, "write")


def hermes(inner: str) -> str:
    return f"<tool_call>\n{inner}\n</tool_call>"


def qwen(inner: str) -> str:
    return f"<tool_call>\n<function=write>\n{inner}</function>\n</tool_call>"


def glm(inner: str) -> str:
    return f"<tool_call>write\n{inner}</tool_call>"


def gemma(inner: str, end: str = "<tool_call|>") -> str:
    return f"<|tool_call>call:write{{{inner}{end}"


def deepseek(inner: str) -> str:
    return f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{inner}{DEEPSEEK_END}<｜tool▁calls▁end｜>"


JSON_BOTH = f'{{"name": "write", "arguments": {BOTH}}}'

CALLS: list[tuple[OutputFormat, str, list[Piece]]] = [
    # Qwen Coder
    (detect.QWEN_CODER, qwen("<parameter=text>\nabc\n<parameter=limit>\n5\n</parameter>\n"), write(BOTH)),
    (detect.QWEN_CODER, qwen("<parameter=text>abc<parameter=limit>5</parameter>"), write(BOTH)),
    (detect.QWEN_CODER, qwen("<parameter=text>\nabc\n"), write(ABC)),
    (detect.QWEN_CODER, qwen("<parameter=limit\n5\n</parameter>\n"), write('{"limit": 5}')),
    (detect.QWEN_CODER, qwen('<parameter="text">\nabc\n</parameter/>\n'), write(ABC)),
    (
        detect.QWEN_CODER,
        qwen("<parameter=text>\nEnds with </parameter> here,\n</function> there, <parameter=limit>.\n</parameter>\n"),
        write('{"text": "Ends with </parameter> here,\\n</function> there, <parameter=limit>."}'),
    ),
    (
        detect.QWEN_CODER,
        qwen("<parameter=text>\na\n<parameter=other>\n<parameter=text>\nb\n</parameter>\n"),
        write('{"text": "a\\n<parameter=other>\\n<parameter=text>\\nb"}'),
    ),
    (detect.QWEN_CODER, "<function=write\n<parameter=text>\nabc\n</parameter>\n</function>", write(ABC)),
    (detect.QWEN_CODER, "<tool_call>\n<function=write>\n<parameter=text>\nabc\n</parameter>\n</tool_call>", write(ABC)),
    (detect.QWEN_CODER, "<tool_call>\n<function=write>\n<parameter=text>\nabc\n</parameter>\n", write(ABC)),
    (detect.QWEN_CODER, "<tool_call>\n<function=write>\n<parameter=text>\nabc\n</tool_call>", write(ABC)),
    (
        detect.QWEN_CODER,
        "<tool_call>\n<function=write>\n<parameter=text>\nabc\n</function>\nDone.",
        [*write(ABC), Text("Done.")],
    ),
    (
        detect.QWEN_CODER,
        "<function=write><parameter=text>abc</function><function=get></function>",
        [*write(ABC), *call("{}", "get")],
    ),
    (
        detect.QWEN_CODER,
        "<function=write><parameter=text>abc</tool_call> and <tool_call><function=write><parameter=limit>5</parameter>"
        "</function></tool_call>",
        [*write(ABC), Text("and"), *write('{"limit": 5}')],
    ),
    (detect.QWEN_CODER, "<tool_call>\n<function=functions.write>\n</function>\n</tool_call>", write("{}")),
    (detect.QWEN_CODER, hermes(JSON_BOTH), write(BOTH)),
    # GLM
    (
        detect.GLM,
        glm("<arg_key>text</arg_key>\n<arg_value>abc\n<arg_key>limit</arg_key>\n<arg_value>5</arg_value>\n"),
        write('{"text": "abc\\n", "limit": 5}'),
    ),
    (
        detect.GLM,
        glm("<arg_key>text</arg_key><arg_value>abc<arg_key>limit</arg_key><arg_value>5</arg_value>"),
        write(BOTH),
    ),
    (detect.GLM, glm("<arg_key>text</arg_key><arg_value>abc"), write(ABC)),
    (detect.GLM, glm("<arg_key>text<arg_value>abc</arg_value><arg_key>limit</arg_key>5</arg_value>"), write(BOTH)),
    (
        detect.GLM,
        glm("<arg_key>text</arg_key><arg_value>a </arg_value> b </tool_call> c</arg_value>"),
        write('{"text": "a </arg_value> b </tool_call> c"}'),
    ),
    (detect.GLM, glm("<arg_key>text</arg_key><arg_value>abc") + " Done.", [*write(ABC), Text("Done.")]),
    (detect.GLM, "<tool_call>write<arg_key>text</arg_key><arg_value>abc</arg_value>", write(ABC)),
    (detect.GLM, "<tool_call>functions.get</tool_call>", call("{}", "get")),
    (detect.GLM, "<tool_call>get", call("{}", "get")),
    (detect.GLM, hermes(JSON_BOTH), write(BOTH)),
    # Gemma 4
    (detect.GEMMA_4, gemma(f"text:{Q}abc,limit:5}}"), write(BOTH)),
    (detect.GEMMA_4, gemma(f"limit:5,text:{Q}abc}}"), write('{"limit": 5, "text": "abc"}')),
    (detect.GEMMA_4, gemma(f"text:{Q}abc,tag:{Q}x{Q}}}"), write('{"text": "abc", "tag": "x"}')),
    (detect.GEMMA_4, gemma(f"text:{Q}abc,limit:5,tag:{Q}x{Q}}}"), write('{"text": "abc", "limit": 5, "tag": "x"}')),
    (detect.GEMMA_4, gemma(f"text:abc{Q},limit:5}}"), write(BOTH)),
    (detect.GEMMA_4, gemma("text:abc,limit:5}"), write(BOTH)),
    (detect.GEMMA_4, gemma("text:Bonn, at 10:30,limit:5}"), write('{"text": "Bonn, at 10:30", "limit": 5}')),
    (detect.GEMMA_4, gemma('text:"a, limit: \\"b\\"", limit: 5}'), write('{"text": "a, limit: \\"b\\"", "limit": 5}')),
    (detect.GEMMA_4, gemma("'text':'abc',\"limit\":5}"), write(BOTH)),
    (detect.GEMMA_4, gemma(f"{Q}text{Q}:{Q}abc{Q},limit:5"), write(BOTH)),
    (detect.GEMMA_4, gemma(f"text:{Q}abc{Q},limit:5}}", ""), write(BOTH)),
    (detect.GEMMA_4, gemma(f"text:{Q}abc{Q},limit:5", ""), write(BOTH)),
    (detect.GEMMA_4, gemma(f"text:{Q}a}}, b,other:{Q}}}"), write('{"text": "a}, b,other:"}')),
    (detect.GEMMA_4, f"<|tool_call>write{{text:{Q}abc{Q}}}<tool_call|>", write(ABC)),
    (detect.GEMMA_4, "<|tool_call>call:default_api:get{}<tool_call|>", call("{}", "get")),
    (detect.GEMMA_4, "<|tool_call>call:functions.get<tool_call|>ok", [*call("{}", "get"), Text("ok")]),
    (detect.GEMMA_4, gemma(f'tag:{{a:"b",c:[{Q}d{Q},e]}}}}'), write('{"tag": {"a": "b", "c": ["d", "e"]}}')),
    # Hermes, and whatever else writes a call as an object in JSON
    (detect.HERMES, hermes('{"name": "write", "arguments": {"text": "abc", "limit": 5,},}'), write(BOTH)),
    (detect.HERMES, hermes("{'name': 'write', 'arguments': {'text': 'a \"b\" it\\'s', 'tag': None}}"),
     write('{"text": "a \\"b\\" it\'s", "tag": null}')),
    (detect.HERMES, hermes('{"name": "write", "arguments": {text: "abc", limit: 5}}'), write(BOTH)),
    (detect.HERMES, hermes('{"name": "write", "arguments": {"tag": True, "limit": [False, None, ]}}'),
     write('{"tag": true, "limit": [false, null ]}')),
    (detect.HERMES, hermes('{"name": "write", "arguments": "{\'text\': \'abc\', \'limit\': 5}"}'), write(BOTH)),
    (detect.HERMES, hermes(f"```json\n{JSON_BOTH}\n```"), write(BOTH)),
    (detect.HERMES, hermes(f"```json\n{JSON_BOTH}"), write(BOTH)),
    (detect.HERMES, hermes(JSON_BOTH[:-1]), write(BOTH)),
    (detect.HERMES, hermes(JSON_BOTH + "}"), write(BOTH)),
    (detect.HERMES, hermes(f"{JSON_BOTH}\n{JSON_BOTH}"), [*write(BOTH), *write(BOTH)]),
    (detect.HERMES, hermes(f"[{JSON_BOTH}, {JSON_BOTH}]"), [*write(BOTH), *write(BOTH)]),
    (detect.HERMES, f"<tool_call>{JSON_BOTH}{hermes(JSON_BOTH)}ok", [*write(BOTH), *write(BOTH), Text("ok")]),
    (detect.HERMES, hermes('{"name": "functions.get", "arguments": {}}'), call("{}", "get")),
    (detect.HERMES, hermes('{"name": "unheard_of", "arguments": {}}'), call("{}", "unheard_of")),
    (detect.HERMES, hermes('{"name": "write", "arguments": {"text": "zürich 😀"}}'), write('{"text": "zürich 😀"}')),
    (detect.LLAMA, f"```json\n{JSON_BOTH}\n```", write(BOTH)),
    (detect.LLAMA, f"{JSON_BOTH}{JSON_BOTH}", [*write(BOTH), *write(BOTH)]),
    (detect.LLAMA, '```json\n{"name": "Al"}\n```', [Text('```json\n{"name": "Al"}\n```')]),
    (detect.MISTRAL_LIST, f"[TOOL_CALLS]{JSON_BOTH}", write(BOTH)),
    (detect.MISTRAL_LIST, f"[TOOL_CALLS][{JSON_BOTH} {JSON_BOTH}", [*write(BOTH), *write(BOTH)]),
    (PROMPTED, f"Sure.\n{hermes(JSON_BOTH)}", [Text("Sure."), *write(BOTH)]),
    (PROMPTED, JSON_BOTH, write(BOTH)),
    # DeepSeek
    (detect.DEEPSEEK, deepseek(f"write{BOTH}"), write(BOTH)),
    (detect.DEEPSEEK, deepseek(f"function<｜tool▁sep｜>write\n{BOTH}\n```"), write(BOTH)),
    (detect.DEEPSEEK, f"<｜tool▁calls▁begin｜>write<｜tool▁sep｜>{BOTH}", write(BOTH)),
    (
        detect.DEEPSEEK,
        deepseek(f"write\n```json\n{BOTH}\n```\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n{{}}\n```"),
        [*write(BOTH), *call("{}", "get")],
    ),
    (detect.DEEPSEEK, deepseek("functions.write<｜tool▁sep｜>{'text': 'abc',}"), write(ABC)),
]  # fmt: skip

TEXTS: list[tuple[OutputFormat, str, list[Piece]]] = [
    (detect.HERMES, hermes('{"name": "write", "text": "abc"}'), [Text(hermes('{"name": "write", "text": "abc"}'))]),
    (
        detect.QWEN_CODER,
        "<function=write>\n<parameter=text>\nabc",
        broken("", "<function=write>\n<parameter=text>\nabc", "write"),
    ),
    (detect.GLM, "<tool_call>write now</tool_call>", [Text("<tool_call>write now</tool_call>")]),
    (detect.GEMMA_4, "<|tool_call>call:write me", [Text("<|tool_call>call:write me")]),
    (detect.DEEPSEEK, deepseek("write it"), [Text(deepseek("write it"))]),
]


@pytest.mark.parametrize(("output_format", "text", "expected"), [*CALLS, *TEXTS])
def test_what_can_be_read_is_a_call_and_what_cannot_is_text(
    output_format: OutputFormat, text: str, expected: list[Piece]
) -> None:
    assert parse(output_format, [text], tools=TOOLS) == expected


@pytest.mark.parametrize(("output_format", "text", "expected"), [*CALLS, *TEXTS])
def test_streamed_it_is_the_same(output_format: OutputFormat, text: str, expected: list[Piece]) -> None:
    assert parse(output_format, text, tools=TOOLS) == expected
    for place in range(len(text)):
        assert parse(output_format, [text[:place], text[place:]], tools=TOOLS) == expected, text[:place]


WHOLE: list[tuple[OutputFormat, str]] = [
    (
        detect.QWEN_CODER,
        "<tool_call>|\n|<function=|write|>|\n|<parameter=|text|>|\nabc\n|</parameter>|\n|<parameter=|limit|>|\n5\n|"
        "</parameter>|\n|</function>|\n|</tool_call>",
    ),
    (
        detect.GLM,
        "<tool_call>|write|\n|<arg_key>|text|</arg_key>|\n|<arg_value>|abc|</arg_value>|\n|<arg_key>|limit|</arg_key>|"
        "\n|<arg_value>|5|</arg_value>|\n|</tool_call>",
    ),
    (
        detect.FUNCTION_GEMMA,
        "<start_function_call>|call:|write|{|text|:|<escape>|abc|<escape>|,|limit|:|5|}|<end_function_call>",
    ),
    (
        detect.HERMES,
        '<tool_call>|\n|{|"name"|:| "write"|,| "arguments"|:| {|"text"|:| "|abc|"|,| "limit"|:| 5|}|}|\n|</tool_call>',
    ),
    (
        detect.DEEPSEEK_FENCED,
        "<｜tool▁calls▁begin｜>|<｜tool▁call▁begin｜>|function|<｜tool▁sep｜>|write|\n|```json|\n|{|"
        '"text"|:| "|abc|"|,| "limit"|:| 5|}|\n|```|<｜tool▁call▁end｜>|<｜tool▁calls▁end｜>',
    ),
]
"""Calls with two arguments, in parts of which any may be missing."""


def read_calls(pieces: list[Piece]) -> list[tuple[str, Any]]:
    calls, name, arguments = [], "", ""
    for piece in pieces:
        if isinstance(piece, ToolCallStart):
            name, arguments = piece.name, ""
        elif isinstance(piece, ToolCallArguments):
            arguments += piece.text
        elif isinstance(piece, ToolCallEnd):
            calls.append((name, json.loads(arguments)))
    return calls


@pytest.mark.parametrize(
    ("output_format", "whole", "left_out"),
    [(output_format, text, n) for output_format, text in WHOLE for n in range(text.count("|") + 1)],
)
def test_whatever_mark_is_left_out_no_two_arguments_become_one(
    output_format: OutputFormat, whole: str, left_out: int
) -> None:
    parts = whole.split("|")
    text = "".join(part for n, part in enumerate(parts) if n != left_out)
    pieces = parse(output_format, [text], tools=TOOLS)
    for _, arguments in read_calls(pieces):
        assert all(
            "5" not in str(value) and "limit" not in str(value) for key, value in arguments.items() if key != "limit"
        )
        assert all("abc" not in str(value) for key, value in arguments.items() if key != "text")
    if not read_calls(pieces):
        assert "".join(piece.text for piece in pieces if isinstance(piece, Text)) == text


@pytest.mark.parametrize(("output_format", "whole"), WHOLE)
def test_a_call_that_the_limit_cuts_off_is_not_completed(output_format: OutputFormat, whole: str) -> None:
    text = whole.replace("|", "")
    for place in range(text.index("5") + 1):
        parser = output_format.make_parser(TOOLS, opened_reasoning=False)
        pieces = [*parser.feed(text[:place]), *parser.flush(is_cut_off=True)]
        assert read_calls(pieces) == [], text[:place]


@pytest.mark.parametrize(
    ("thoughts", "expected"),
    [
        (f"I need it.\n{hermes(JSON_BOTH)}", [Reasoning("I need it."), *write(BOTH)]),
        (f"I need it.\n{hermes(JSON_BOTH)}\n</think>\n", [Reasoning("I need it."), *write(BOTH)]),
        (
            f"Both:\n{hermes(JSON_BOTH)}\n{hermes(JSON_BOTH)}\n",
            [Reasoning("Both:"), *write(BOTH), *write(BOTH)],
        ),
        (f"{hermes(JSON_BOTH)} or not?", [Reasoning(f"{hermes(JSON_BOTH)} or not?")]),
        (
            f"Like\n{hermes(JSON_BOTH)}\nor\n{hermes(JSON_BOTH)}",
            [Reasoning(f"Like\n{hermes(JSON_BOTH)}\nor"), *write(BOTH)],
        ),
        (
            f"Like {hermes(JSON_BOTH)}\n</think>\nNo.",
            [Reasoning(f"Like {hermes(JSON_BOTH)}"), Text("No.")],
        ),
        (
            f"Like {hermes(JSON_BOTH)}\n</think>\n{hermes(JSON_BOTH)}",
            [Reasoning(f"Like {hermes(JSON_BOTH)}"), *write(BOTH)],
        ),
        ("Write <tool_call> and then", [Reasoning("Write <tool_call> and then")]),
        (
            'Hm <tool_call>{"name": "write", "arguments": {"te',
            [Reasoning('Hm <tool_call>{"name": "write", "arguments": {"te')],
        ),
    ],
)
def test_a_call_in_thoughts_is_one_where_the_output_ends_behind_it(thoughts: str, expected: list[Piece]) -> None:
    assert parse(THINKING, [thoughts], tools=TOOLS, opened=True) == expected
    assert parse(THINKING, f"<think>\n{thoughts}", tools=TOOLS) == expected
    assert not any(isinstance(piece, ToolCallBroken) for piece in expected)
