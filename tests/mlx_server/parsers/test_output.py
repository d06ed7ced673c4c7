import json
import logging
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_manager.mlx_server.parsers import detect
from mlx_manager.mlx_server.parsers.formats import OutputFormat
from mlx_manager.mlx_server.parsers.pieces import (
    Piece,
    Reasoning,
    Text,
    Tool,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    joined,
)
from tests.mlx_server.parsers.outputs import BROKEN_OUTPUTS, HARMONY, OUTPUTS, THINKING, TOOLS, call, parse

ALL_OUTPUTS = [*OUTPUTS, *BROKEN_OUTPUTS]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4)


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize(("output_format", "text", "expected"), ALL_OUTPUTS)
def test_an_output_is_told_into_its_pieces(output_format: OutputFormat, text: str, expected: list[Piece]) -> None:
    assert parse(output_format, [text]) == expected


@pytest.mark.parametrize(("output_format", "text", "expected"), ALL_OUTPUTS)
def test_no_cut_in_two_changes_the_pieces(output_format: OutputFormat, text: str, expected: list[Piece]) -> None:
    for place in range(len(text) + 1):
        assert parse(output_format, [text[:place], text[place:]]) == expected, (text[:place], text[place:])


@pytest.mark.parametrize(("output_format", "text", "expected"), ALL_OUTPUTS)
def test_one_character_at_a_time_gives_the_same_pieces(
    output_format: OutputFormat, text: str, expected: list[Piece]
) -> None:
    assert parse(output_format, text) == expected


@given(st.sampled_from(ALL_OUTPUTS), st.lists(st.integers(0, 10_000), max_size=12))
def test_however_the_text_is_cut_the_pieces_are_the_same(
    output: tuple[OutputFormat, str, list[Piece]], places: list[int]
) -> None:
    output_format, text, expected = output
    assert parse(output_format, cut(text, places)) == expected


@given(
    st.sampled_from(sorted({output_format.name: output_format for output_format, _, _ in OUTPUTS}.items())),
    st.lists(st.sampled_from(["<", "tool_call", ">", '{"name": ', '"get"', "[", "get", "(", ")", "]", "}", " ", "é"])),
    st.sampled_from([text for _, text, _ in ALL_OUTPUTS]),
    st.lists(st.integers(0, 10_000), max_size=6),
)
def test_whatever_a_model_writes_is_parsed_alike_in_any_pieces(
    named_format: tuple[str, OutputFormat], scraps: list[str], other: str, places: list[int]
) -> None:
    text = "".join(scraps) + other
    assert parse(named_format[1], cut(text, places)) == parse(named_format[1], [text])


@pytest.mark.parametrize(("output_format", "text", "expected"), OUTPUTS)
def test_the_arguments_of_every_complete_call_are_an_object(
    output_format: OutputFormat, text: str, expected: list[Piece]
) -> None:
    arguments = [piece.text for piece in parse(output_format, text) if isinstance(piece, ToolCallArguments)]
    assert all(isinstance(json.loads(text), dict) for text in arguments)


@pytest.mark.parametrize(("output_format", "text", "expected"), BROKEN_OUTPUTS)
def test_a_call_that_does_not_parse_is_counted_and_logged_without_its_text(
    output_format: OutputFormat, text: str, expected: list[Piece], caplog: pytest.LogCaptureFixture
) -> None:
    parser = output_format.make_parser(TOOLS, opened_reasoning=False)
    parser.feed(text)
    parser.flush()
    assert parser.broken_calls == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Paris" not in caplog.text


@pytest.mark.parametrize(("output_format", "text", "expected"), OUTPUTS)
def test_an_output_without_a_broken_call_is_not_worth_a_warning(
    output_format: OutputFormat, text: str, expected: list[Piece], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        parser = output_format.make_parser(TOOLS, opened_reasoning=False)
        parser.feed(text)
        parser.flush()
    assert (parser.broken_calls, caplog.records) == (0, [])


@pytest.mark.parametrize(
    ("output_format", "text"), [(found, text) for found, text, _ in ALL_OUTPUTS if found.reasoning is None]
)
def test_without_tools_there_are_no_calls_and_no_text_is_lost(output_format: OutputFormat, text: str) -> None:
    assert parse(output_format, [text], tools=()) == ([Text(text)] if text else [])


@given(ARGUMENTS, st.booleans(), st.lists(st.integers(0, 10_000), max_size=6))
def test_any_json_arguments_pass_through_as_they_are(
    arguments: dict[str, Any], ascii_only: bool, places: list[int]
) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii_only)
    text = f'<tool_call>\n{{"name": "get", "arguments": {written}}}\n</tool_call>'
    assert parse(detect.HERMES, cut(text, places)) == call(written, "get")


def test_the_name_comes_first_and_the_arguments_as_they_are_produced() -> None:
    parser = detect.HERMES.make_parser(TOOLS, opened_reasoning=False)
    assert parser.feed('<tool_call>\n{"name": "get_weather"') == []
    assert parser.feed(', "arguments": {"ci') == [ToolCallStart("get_weather"), ToolCallArguments('{"ci')]
    assert parser.feed('ty": "Par') == [ToolCallArguments('ty": "Par')]
    assert parser.feed('is", "days": 1') == [ToolCallArguments('is", "days": ')]
    assert parser.feed("2}") == [ToolCallArguments("12}")]
    assert parser.feed("}") == [ToolCallEnd()]
    assert parser.feed("\n</tool_call>") == []
    assert parser.flush() == []


def test_a_parameter_in_tags_is_sent_when_what_follows_shows_its_end() -> None:
    parser = detect.QWEN_CODER.make_parser(TOOLS, opened_reasoning=False)
    assert parser.feed("<tool_call>\n<function=get_weather>\n") == [ToolCallStart("get_weather")]
    assert parser.feed("<parameter=city>\nParis\n</parameter>\n") == []
    assert parser.feed("<parameter=days>") == [ToolCallArguments('{"city": "Paris"')]
    assert parser.feed("\n3\n</parameter>\n</function>") == [ToolCallArguments(', "days": 3}'), ToolCallEnd()]


@given(st.text("a<tol_cah> \n"))
def test_no_text_is_held_back_but_what_a_marker_may_begin_with(text: str) -> None:
    parser = detect.HERMES.make_parser(TOOLS, opened_reasoning=False)
    shown = "".join(piece.text for piece in parser.feed(text) if isinstance(piece, Text))
    held = text[len(shown) :]
    assert "<tool_call>" in text or "<tool_call>".startswith(held.lstrip(" \n"))
    assert "<tool_call>" in text or shown + "".join(p.text for p in parser.flush() if isinstance(p, Text)) == text


def test_an_answer_in_json_is_not_held_back_where_calls_have_no_marker() -> None:
    parser = detect.LLAMA.make_parser(TOOLS, opened_reasoning=False)
    assert parser.feed('{"name": "get_we') == []
    assert parser.feed("b") == [Text('{"name": "get_web')]
    assert parser.feed("[1") == [Text("[1")]


def test_flush_ends_the_output_once() -> None:
    parser = detect.HERMES.make_parser(TOOLS, opened_reasoning=False)
    assert parser.feed("a <tool_") == [Text("a")]
    assert parser.flush() == [Text(" <tool_")]
    assert parser.flush() == []


def test_the_same_format_parses_many_outputs_at_once() -> None:
    parsers = [detect.LLAMA.make_parser(TOOLS, opened_reasoning=False) for _ in range(2)]
    beginning, end = '{"name": "get", "para', 'meters": {}}'
    assert [parser.feed(beginning) for parser in parsers] == [[], []]
    assert [joined(parser.feed(end)) for parser in parsers] == [call("{}", "get")] * 2


def test_values_in_tags_become_what_the_schema_says() -> None:
    schemas: dict[str, Any] = {
        "ref": {"$ref": "#/$defs/Count"},
        "optional": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "none": {"type": ["string", "null"]},
        "choice": {"enum": [1, 2]},
        "code": {"type": "string"},
        "ratio": {"type": "number"},
        "wrong": {"type": "integer"},
        "huge": {"type": "number"},
        "free": {},
    }
    texts = {
        "ref": "7",
        "optional": "8",
        "none": "null",
        "choice": "2",
        "code": "[1]",
        "ratio": "0.5",
        "wrong": "many",
        "huge": "1e999",
        "free": '{"a": 1}',
    }
    tool = Tool("f", {"type": "object", "properties": schemas, "$defs": {"Count": {"type": "integer"}}})
    parameters = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    pieces = parse(detect.QWEN_CODER, [f"<function=f>{parameters}</function>"], tools=(tool,))
    arguments = next(json.loads(piece.text) for piece in pieces if isinstance(piece, ToolCallArguments))
    assert arguments == {
        "ref": 7,
        "optional": 8,
        "none": None,
        "choice": 2,
        "code": "[1]",
        "ratio": 0.5,
        "wrong": "many",
        "huge": "1e999",
        "free": {"a": 1},
    }


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>a</think>b", False, [Reasoning("a"), Text("b")]),
        ("\n<think>\n\na\n b \n</think>\n\n b", False, [Reasoning("a\n b"), Text("b")]),
        ("<think>\n\n</think>\n\nb", False, [Text("b")]),
        ("a</think>b", True, [Reasoning("a"), Text("b")]),
        ("<think>a</think>b", True, [Reasoning("a"), Text("b")]),
        ("</think>b", True, [Text("b")]),
        ("<think>a </thin", False, [Reasoning("a </thin")]),
        ("a ", True, [Reasoning("a ")]),
        ("b <think>c</think>", False, [Text("b <think>c</think>")]),
        ("\n b", False, [Text("\n b")]),
        ("<thin", False, [Text("<thin")]),
        ("<think>a</think>\n<think>b</think>c", False, [Reasoning("ab"), Text("c")]),
        ("<think>", False, []),
    ],
)
def test_reasoning_comes_first_and_never_into_the_text(text: str, opened: bool, expected: list[Piece]) -> None:
    assert parse(THINKING, [text], opened=opened) == expected
    assert parse(THINKING, text, opened=opened) == expected
    assert parse(THINKING, text, opened=opened, tools=()) == expected


def test_reasoning_is_sent_as_it_comes() -> None:
    parser = THINKING.make_parser(TOOLS, opened_reasoning=True)
    assert parser.feed("Let me ") == [Reasoning("Let me")]
    assert parser.feed("see <") == [Reasoning(" see")]
    assert parser.feed("b") == [Reasoning(" <b")]


def test_the_prompt_tells_whether_reasoning_is_open() -> None:
    assert THINKING.opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not THINKING.opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not detect.HERMES.opens_reasoning("<think>")
    assert not HARMONY.opens_reasoning("<|start|>assistant")
