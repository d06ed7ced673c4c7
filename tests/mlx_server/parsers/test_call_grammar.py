import json
import re
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.models.tokenization import load_tokenizer
from mlx_manager.mlx_server.parsers import detect
from mlx_manager.mlx_server.parsers.formats import OutputFormat
from mlx_manager.mlx_server.parsers.pieces import Tool, ToolCallArguments, ToolCallStart, UnsupportedToolSchema
from tests.mlx_server.parsers.outputs import HARMONY, parse

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "days": {"type": "integer", "minimum": 1},
            "unit": {"enum": ["celsius", "kelvin"]},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
NOTE = Tool(
    "note",
    {
        "type": "object",
        "properties": {
            "text": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "done": {"type": "boolean"},
            "count": {"$ref": "#/$defs/Count"},
        },
        "$defs": {"Count": {"type": "integer", "maximum": 9}},
    },
)
NOW = Tool("now", {})
TOOLS = (WEATHER, NOTE, NOW)

CALLS: dict[str, tuple[OutputFormat, list[str]]] = {
    "hermes": (
        detect.HERMES,
        [
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "</tool_call> {"}}\n</tool_call>',
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
            '<tool_call>\n{"name": "note", "arguments": {"count": 3}}\n</tool_call>',
        ],
    ),
    "llama": (
        detect.LLAMA,
        [
            '{"name": "get_weather", "parameters": {"city": "Zürich", "days": 3}}',
            '{"name": "now", "parameters": {}}',
        ],
    ),
    "pythonic": (
        detect.LLAMA_PYTHONIC,
        [
            '[get_weather(city="a\\"b", unit="kelvin")]',
            "[note(done=true, count=4)]",
            "[note(count=4)]",
            "[note(text=null)]",
            "[now()]",
        ],
    ),
    "qwen_coder": (
        detect.QWEN_CODER,
        [
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nSan\n<b>\n</parameter>\n<parameter=days>\n"
            "3\n</parameter>\n<parameter=unit>\nkelvin\n</parameter>\n</function>\n</tool_call>",
            "<tool_call>\n<function=note>\n<parameter=text>\nnull\n</parameter>\n<parameter=count>\n9\n</parameter>\n"
            "</function>\n</tool_call>",
            "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        ],
    ),
    "glm": (
        detect.GLM,
        [
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>5</arg_value>\n<arg_key>days</arg_key>\n"
            "<arg_value>5</arg_value>\n</tool_call>",
            "<tool_call>now\n</tool_call>",
        ],
    ),
    "longcat": (
        detect.LONGCAT,
        [
            "<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>5"
            "</longcat_arg_value>\n</longcat_tool_call>"
        ],
    ),
    "minimax": (
        detect.MINIMAX,
        [
            '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">a < b</parameter>\n'
            '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>'
        ],
    ),
    "muse": (
        detect.MUSE,
        [
            '<atem:function_calls>\n<atem:invoke name="note">\n<atem:parameter name="done">true</atem:parameter>\n'
            "</atem:invoke>\n</atem:function_calls>"
        ],
    ),
    "minicpm": (
        detect.MINICPM,
        ['<function name="get_weather"><param name="city">x</param></function>', '<function name="now"></function>'],
    ),
    "kimi_k2": (
        detect.KIMI_K2,
        [
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.note:0<|tool_call_argument_begin|>"
            '{"done": true}<|tool_call_end|><|tool_calls_section_end|>'
        ],
    ),
    "kimi_k3": (
        detect.KIMI_K3,
        [
            '<|open|>tools<|sep|><|open|>call tool="now" index="1"<|sep|><|open|>json type="object"<|sep|>{}'
            "<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>"
        ],
    ),
    "mistral_list": (
        detect.MISTRAL_LIST,
        [
            '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "x"}}]',
            '[TOOL_CALLS][{"name": "now", "arguments": {}}]',
        ],
    ),
    "mistral": (detect.MISTRAL, ['[TOOL_CALLS]get_weather[ARGS]{"city": "[TOOL_CALLS]"}', "[TOOL_CALLS]now[ARGS]{}"]),
    "phi": (detect.PHI, ['<|tool_call|>[{"name": "get_weather", "arguments": {"city": "x"}}]<|/tool_call|>']),
    "deepseek_fenced": (
        detect.DEEPSEEK_FENCED,
        [
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
            '```json\n{"city": "```"}\n```'
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ],
    ),
    "deepseek": (
        detect.DEEPSEEK,
        [
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>note<｜tool▁sep｜>{"done": true}<｜tool▁call▁end｜>'
            "<｜tool▁calls▁end｜>"
        ],
    ),
    "function_gemma": (
        detect.FUNCTION_GEMMA,
        [
            "<start_function_call>call:get_weather{city:<escape>a,}b<escape>,days:3}<end_function_call>",
            "<start_function_call>call:get_weather{city:<escape>a<escape>,unit:<escape>kelvin<escape>}"
            "<end_function_call>",
            "<start_function_call>call:now{}<end_function_call>",
        ],
    ),
    "gemma_4": (detect.GEMMA_4, ['<|tool_call>call:note{text:<|"|>a "b"<|"|>,done:true}<tool_call|>']),
    "harmony": (
        HARMONY,
        [
            '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"x"}',
            "<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}",
            "<|channel|>analysis<|message|>Well.<|end|><|start|>assistant<|channel|>commentary to=functions.now "
            "<|constrain|>json<|message|>{}",
        ],
    ),
}
EXAMPLES = [(found, text) for found, texts in CALLS.values() for text in texts]


@pytest.fixture(scope="module")
def vocabulary() -> LLTokenizer:
    return LLTokenizer(str(demo_model_path() / "tokenizer.json"))


def grammar_of(
    output_format: OutputFormat, tools: tuple[Tool, ...] = TOOLS, parallel: bool = False, **special_tokens: int
) -> str:
    grammar = output_format.tool_call_grammar(tools, parallel=parallel, special_tokens=special_tokens)
    assert grammar is not None
    return grammar.lark


def accepts(vocabulary: LLTokenizer, grammar: str, text: str) -> bool:
    """Whether `text` is all that the grammar wants, read token by token as a batch would."""
    assert LLMatcher.validate_grammar(grammar, vocabulary) == ""
    matcher = LLMatcher(vocabulary, grammar)
    tokens = vocabulary.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(("output_format", "text"), EXAMPLES)
def test_the_grammar_takes_a_call_as_the_family_writes_it(
    vocabulary: LLTokenizer, output_format: OutputFormat, text: str
) -> None:
    assert accepts(vocabulary, grammar_of(output_format), text)


@pytest.mark.parametrize(("output_format", "text"), EXAMPLES)
def test_what_the_grammar_takes_is_parsed_and_validates(output_format: OutputFormat, text: str) -> None:
    pieces = parse(output_format, [text], tools=TOOLS)
    (name,) = [piece.name for piece in pieces if isinstance(piece, ToolCallStart)]
    (arguments,) = [json.loads(piece.text) for piece in pieces if isinstance(piece, ToolCallArguments)]
    jsonschema.validate(arguments, next(tool.parameters for tool in TOOLS if tool.name == name))


@pytest.mark.parametrize(("output_format", "text"), EXAMPLES)
def test_the_grammar_takes_nothing_before_the_call_is_whole_and_no_text_before_it(
    vocabulary: LLTokenizer, output_format: OutputFormat, text: str
) -> None:
    grammar = grammar_of(output_format)
    assert not accepts(vocabulary, grammar, text[:-1])
    assert not accepts(vocabulary, grammar, f"Sure! {text}")
    assert not accepts(vocabulary, grammar, "")


@pytest.mark.parametrize(("output_format", "text"), EXAMPLES)
def test_a_named_tool_is_the_only_one_that_can_be_called(
    vocabulary: LLTokenizer, output_format: OutputFormat, text: str
) -> None:
    called = next(tool for tool in TOOLS if tool.name in text)
    others = tuple(tool for tool in TOOLS if tool is not called)
    assert accepts(vocabulary, grammar_of(output_format, (called,)), text)
    assert not accepts(vocabulary, grammar_of(output_format, others), text)


@pytest.mark.parametrize(
    ("output_format", "text"),
    [
        (detect.HERMES, CALLS["hermes"][1][0] + "\n" + CALLS["hermes"][1][1]),
        (detect.LLAMA, "; ".join(CALLS["llama"][1])),
        (detect.LLAMA_PYTHONIC, '[get_weather(city="x"), now()]'),
        (detect.QWEN_CODER, "\n".join(CALLS["qwen_coder"][1])),
        (detect.GLM, "\n".join(CALLS["glm"][1])),
        (detect.MISTRAL_LIST, '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]'),
        (detect.MISTRAL, "".join(CALLS["mistral"][1])),
        (detect.FUNCTION_GEMMA, "".join(CALLS["function_gemma"][1])),
    ],
)
def test_several_calls_are_taken_where_they_are_allowed(
    vocabulary: LLTokenizer, output_format: OutputFormat, text: str
) -> None:
    assert accepts(vocabulary, grammar_of(output_format, parallel=True), text)
    assert not accepts(vocabulary, grammar_of(output_format, parallel=False), text)


@pytest.mark.parametrize(
    ("output_format", "text"),
    [
        (detect.HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'),
        (detect.LLAMA, '{"name": "get_weather", "parameters": {"city": 5}}'),
        (detect.LLAMA, '{"name": "get_weather", "parameters": {"city": "x", "zip": 5}}'),
        (detect.LLAMA, '{"name": "other", "parameters": {}}'),
        (detect.LLAMA_PYTHONIC, "[get_weather(days=3)]"),
        (detect.LLAMA_PYTHONIC, "[get_weather(city=Paris)]"),
        (detect.QWEN_CODER, "<tool_call>\n<function=get_weather>\n</function>\n</tool_call>"),
        (
            detect.QWEN_CODER,
            "<tool_call>\n<function=note>\n<parameter=count>\n10\n</parameter>\n</function>\n</tool_call>",
        ),
        (
            detect.GLM,
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>x</arg_value>\n<arg_key>unit</arg_key>\n"
            "<arg_value>rankine</arg_value>\n</tool_call>",
        ),
        (detect.FUNCTION_GEMMA, "<start_function_call>call:note{,done:true}<end_function_call>"),
    ],
)
def test_arguments_that_break_the_schema_are_not_taken(
    vocabulary: LLTokenizer, output_format: OutputFormat, text: str
) -> None:
    assert not accepts(vocabulary, grammar_of(output_format), text)


def test_a_marker_that_is_a_special_token_is_taken_as_that_token(vocabulary: LLTokenizer) -> None:
    tag = load_tokenizer(demo_model_path()).convert_tokens_to_ids("<|python_tag|>")
    grammar = grammar_of(detect.HERMES, (NOW,), **{"<tool_call>": tag})
    matcher = LLMatcher(vocabulary, grammar)
    assert LLMatcher.validate_grammar(grammar, vocabulary) == ""
    rest = vocabulary.tokenize_str('\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert matcher.try_consume_tokens([tag, *rest]) == 1 + len(rest)
    assert not accepts(vocabulary, grammar, CALLS["hermes"][1][1])


def test_text_up_to_a_special_token_may_be_any(vocabulary: LLTokenizer) -> None:
    tag = load_tokenizer(demo_model_path()).convert_tokens_to_ids("<|python_tag|>")
    grammar = grammar_of(detect.GLM, (WEATHER,), **{"</arg_value>": tag})
    text = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>a </arg_val b"
    tokens = [*vocabulary.tokenize_str(text), tag, *vocabulary.tokenize_str("\n</tool_call>")]
    matcher = LLMatcher(vocabulary, grammar)
    assert matcher.try_consume_tokens(tokens) == len(tokens)
    assert matcher.is_accepting()


def test_the_length_of_text_is_held_to(vocabulary: LLTokenizer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 2, "maxLength": 3}}}
    grammar = grammar_of(detect.QWEN_CODER, (Tool("f", {**schema, "required": ["a"]}),))
    taken = [
        accepts(
            vocabulary,
            grammar,
            f"<tool_call>\n<function=f>\n<parameter=a>\n{'x' * length}\n</parameter>\n</function>\n</tool_call>",
        )
        for length in range(1, 5)
    ]
    assert taken == [False, True, True, False]


@pytest.mark.parametrize(
    ("output_format", "parameters", "culprit"),
    [
        (detect.QWEN_CODER, {"properties": {"a": {"type": "string", "pattern": "x"}}}, "pattern"),
        (detect.QWEN_CODER, {"properties": {"a": {"type": "string", "format": "date"}}}, "format"),
        (detect.QWEN_CODER, {"properties": {"a": {"type": ["string", "object"]}}}, "type"),
        (detect.GLM, {"properties": {"a": {"anyOf": [{"type": "string", "maxLength": 1}]}}}, "maxLength"),
        (detect.GLM, {"properties": {}, "anyOf": [{"required": ["a"]}]}, "anyOf"),
        (detect.GLM, {"properties": {"a b": {}}}, "a b"),
        (detect.LLAMA_PYTHONIC, {"properties": {"a=": {"type": "string"}}}, "a="),
        (detect.FUNCTION_GEMMA, {"properties": {"a": {"type": "array"}}}, "list or an object"),
    ],
)
def test_a_schema_that_the_format_cannot_be_held_to_is_refused_by_name(
    output_format: OutputFormat, parameters: dict[str, Any], culprit: str
) -> None:
    with pytest.raises(UnsupportedToolSchema, match=culprit) as refused:
        output_format.tool_call_grammar((Tool("f", parameters, strict=True),), parallel=False, special_tokens={})
    assert refused.value.param == "tools"


@pytest.mark.parametrize(
    ("output_format", "parameters", "left_out"),
    [
        (detect.QWEN_CODER, {"properties": {"a": {"type": "string", "pattern": "x"}}}, "'pattern' at properties.a"),
        (detect.QWEN_CODER, {"properties": {"a": {"type": ["string", "object"]}}}, "'type' at properties.a"),
        (detect.GLM, {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, "'anyOf' at the top level"),
    ],
)
def test_a_keyword_that_the_format_cannot_be_held_to_is_left_out_and_named(
    vocabulary: LLTokenizer, output_format: OutputFormat, parameters: dict[str, Any], left_out: str
) -> None:
    grammar = output_format.tool_call_grammar((Tool("f", parameters),), parallel=False, special_tokens={})
    assert grammar is not None
    assert grammar.unenforced == (f"tool 'f': {left_out} is not enforced",)
    assert LLMatcher.validate_grammar(grammar.lark, vocabulary) == ""


def test_a_format_that_nothing_enforces_is_an_annotation() -> None:
    tool = Tool("f", {"properties": {"a": {"type": "string", "format": "path"}}}, strict=True)
    grammar = detect.QWEN_CODER.tool_call_grammar((tool,), parallel=False, special_tokens={})
    assert grammar is not None
    assert grammar.unenforced == ()


@pytest.mark.parametrize("keyword", ["$ref", "allOf"])
def test_parameters_that_are_not_listed_are_refused_where_they_stand_one_by_one(keyword: str) -> None:
    tool = Tool("f", {keyword: [] if keyword == "allOf" else "#/$defs/x"})
    with pytest.raises(UnsupportedToolSchema, match=re.escape(keyword)):
        detect.GLM.tool_call_grammar((tool,), parallel=False, special_tokens={})
    assert detect.HERMES.tool_call_grammar((tool,), parallel=False, special_tokens={}) is not None


def test_where_no_grammar_is_known_there_is_none() -> None:
    assert detect.PLAIN.tool_call_grammar(TOOLS, parallel=True, special_tokens={}) is None
