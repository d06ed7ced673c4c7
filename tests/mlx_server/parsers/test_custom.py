"""Calls of custom tools: text between tags, however the output is cut, held to the tool's grammar by llguidance."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from mlx_manager.mlx_server.grammars.sources import serialised
from mlx_manager.mlx_server.parsers.custom import custom_call, custom_call_rules, text_with_custom_calls
from mlx_manager.mlx_server.parsers.detect import HERMES, PLAIN, QWEN_CODER
from mlx_manager.mlx_server.parsers.formats import TaggedFormat
from mlx_manager.mlx_server.parsers.pieces import (
    Piece,
    Text,
    Tool,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    joined,
)
from mlx_manager.mlx_server.types import CUSTOM_PARAMETERS

PATCH = Tool("patch", CUSTOM_PARAMETERS, custom=True)
CODE = Tool("code", CUSTOM_PARAMETERS, custom=True)
LOOK = Tool("look", {"type": "object", "properties": {}})
TOOLS = [LOOK, PATCH, CODE]
END_OF_TEXT = 300
SPECIAL = 299


class Bytes:
    """A vocabulary of bytes, with a special token and one that ends the text."""

    eos_token_id = END_OF_TEXT
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), *(b"\xff<%d>" % n for n in range(256, 300)), b"<eos>")
    special_token_ids = (*range(256, 301),)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()))


def read(text: str, *, output_format: TaggedFormat = HERMES, cuts: int = 1, is_cut_off: bool = False) -> list[Piece]:
    parser = output_format.make_parser(TOOLS, opened_reasoning=False)
    pieces: list[Piece] = []
    for start in range(0, len(text), cuts):
        pieces += parser.feed(text[start : start + cuts])
    return joined([*pieces, *parser.flush(is_cut_off=is_cut_off)])


def called(name: str, text: str) -> list[Piece]:
    arguments = json.dumps({"input": text}, ensure_ascii=False)
    return [ToolCallStart(name), ToolCallArguments(arguments), ToolCallEnd()]


@pytest.mark.parametrize("output_format", [HERMES, PLAIN, QWEN_CODER], ids=lambda one: one.name)
@pytest.mark.parametrize("cuts", [1, 3, 1000])
@pytest.mark.parametrize("text", ["", "a", '*** Begin "x" \\ é\n\n', "</tool_call> <custom", "\n1\n"])
def test_the_text_of_a_call_is_read_as_it_is(output_format: TaggedFormat, cuts: int, text: str) -> None:
    output = f"I patch it. {custom_call('patch', text)}\n{custom_call('code', '1')} Done."
    assert read(output, output_format=output_format, cuts=cuts) == [
        Text("I patch it."),
        *called("patch", text),
        *called("code", "1"),
        Text("Done."),
    ]


def test_calls_of_functions_stand_beside_them() -> None:
    function = '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>'
    look = [ToolCallStart("look"), ToolCallArguments('{"a": 1}'), ToolCallEnd()]
    assert read(f"{function}\n{custom_call('code', 'x')}") == [*look, *called("code", "x")]


@pytest.mark.parametrize("name", ["look", "nobody"])
def test_a_tag_that_names_no_custom_tool_is_text(name: str) -> None:
    assert read(custom_call(name, "x")) == [Text(custom_call(name, "x"))]


def test_a_call_that_the_model_ends_without_its_tag_is_whole_and_one_that_is_cut_off_is_not() -> None:
    begun = custom_call("code", "x").partition("\n</")[0]
    assert read(begun) == called("code", "x")
    assert ToolCallEnd() not in read(begun, is_cut_off=True)


GRAMMARS = {
    "patch": 'start: "*** Begin" LF LINE+ "*** End" LF?\nLINE: "+" /.*/ LF\n%import common.LF',
    "code": "start: /[0-9]{3}/",
}


def accepts(lark: str, *parts: str | int) -> bool:
    """Whether an answer may consist of these texts and special tokens, and end there."""
    grammar = serialised(lark)
    assert LLMatcher.validate_grammar(grammar) == ""
    matcher = LLMatcher(TOKENIZER, grammar, log_level=0)
    tokens = [token for part in parts for token in ([part] if isinstance(part, int) else part.encode())]
    taken = matcher.try_consume_tokens(tokens)
    assert not matcher.get_error()
    return bool(taken == len(tokens) and matcher.is_accepting())


def free(*, parallel: bool = True) -> str:
    rules = custom_call_rules([PATCH, CODE], GRAMMARS, parallel=parallel)
    return text_with_custom_calls(rules, [SPECIAL], parallel=parallel)


@pytest.mark.parametrize(
    ("parts", "is_accepted"),
    [
        (["Hello."], True),
        ([""], True),
        (["a", SPECIAL, '{"name": "look"}', SPECIAL], True),
        (["I do. ", custom_call("code", "123")], True),
        ([custom_call("code", "123"), "\n", custom_call("patch", "*** Begin\n+a\n*** End\n"), " Done"], True),
        ([SPECIAL, custom_call("code", "123"), SPECIAL, custom_call("code", "456")], True),
        (["I do. ", custom_call("code", "12")], False),
        ([custom_call("patch", "*** Begin\n*** End")], False),
        ([custom_call("nobody", "123")], False),
        (['<custom_tool_call name="code">\n123'], False),
        (["a <custom_tool_call> b", "<custom_"], True),
    ],
)
def test_in_any_answer_what_begins_as_a_call_is_one(parts: list[str | int], is_accepted: bool) -> None:
    assert accepts(free(), *parts) is is_accepted


def test_only_one_call_is_made_where_one_is_wanted() -> None:
    call = custom_call("code", "123")
    assert accepts(free(parallel=False), call)
    assert not accepts(free(parallel=False), call, call)


WORDS = st.text("ab", min_size=1, max_size=3)
RULES: st.SearchStrategy[Any] = st.recursive(
    WORDS.map(lambda word: (json.dumps(word), word)),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]} {two[1][0]})", two[0][1] + two[1][1])),
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]} | {two[1][0]})", two[1][1])),
        inner.map(lambda one: (f"({one[0]})+", one[1] * 2)),
        inner.map(lambda one: (f"({one[0]})?", "")),
        st.just(("/[0-9]{1,3}/", "42")),
    ),
    max_leaves=6,
)
"""Lark, and a text that it describes, as far as llguidance's lexer, which takes the longest match, follows it."""


@settings(max_examples=150)
@given(RULES, st.text("ab01", max_size=6))
def test_any_grammar_holds_for_the_text_between_the_tags(rule: tuple[str, str], other: str) -> None:
    source, example = rule
    grammar = f"start: {source}"
    rules = custom_call_rules([CODE], {"code": grammar}, parallel=True)
    for lark in (text_with_custom_calls(rules, [], parallel=True), f"%llguidance {{}}\n{rules}start: custom_calls\n"):
        for text in (example, other):
            assert accepts(lark, custom_call("code", text)) == accepts(grammar, text)
