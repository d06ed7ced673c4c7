"""Grammars tried out by real checking processes, and generated with through a real worker."""

import asyncio
import contextlib
import dataclasses
import json
import re
from collections.abc import AsyncIterator

import jsonschema
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mlx_manager.demo import DEMO_MODEL_ID
from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.grammars.keywords import LEFT_OUT, UNENFORCED
from mlx_manager.mlx_server.grammars.sources import translate
from mlx_manager.mlx_server.grammars.validation import MAX_SOURCE_CHARACTERS, GrammarValidator
from mlx_manager.mlx_server.grammars.verdict import GrammarRefused, Question
from mlx_manager.mlx_server.models.budget import Budget
from mlx_manager.mlx_server.models.catalog import Catalog
from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.types import SCHEMA_LABEL, Grammar, GrammarKind, SamplingParams
from tests.mlx_server.engine.json_schemas import SCHEMAS, SMALL, Schema, closed

pytestmark = pytest.mark.anyio

KEYWORDS = sorted(
    {*UNENFORCED, *LEFT_OUT, "additionalProperties", "allOf", "anyOf", "const", "enum", "format", "items", "maxItems"}
    | {
        "minProperties",
        "oneOf",
        "pattern",
        "patternProperties",
        "prefixItems",
        "properties",
        "required",
        "type",
        "$ref",
    }
)
SLOW: Schema = {"allOf": [{"type": "string", "pattern": f"a.*b{n}.*c"} for n in range(100)]}


@pytest.fixture(scope="module")
async def validator() -> AsyncIterator[GrammarValidator]:
    validator = GrammarValidator()
    yield validator
    await validator.close()


def schema_grammar(schema: object) -> Grammar:
    return Grammar("json_schema", json.dumps(schema), "response_format.json_schema.schema")


def checkers() -> set[int]:
    return {child.pid for child in psutil.Process().children() if "grammars.checker" in " ".join(child.cmdline())}


def links(count: int) -> Schema:
    """References that lead to references."""
    definitions: Schema = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(count)}
    return {"$defs": {**definitions, f"d{count}": {"type": "null"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize("name", SCHEMAS)
async def test_schema_that_llguidance_has_is_found_valid(validator: GrammarValidator, name: str) -> None:
    assert await validator.compile(schema_grammar(SCHEMAS[name]))


@pytest.mark.parametrize(
    ("schema", "keyword", "place"),
    [
        (closed({"a": {"not": {"type": "string"}}}), "not", "properties.a"),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if", "the top level"),
        ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, "uniqueItems", "items"),
        ({"type": "array", "contains": {"type": "string"}}, "contains", "the top level"),
        ({"type": "array", "prefixItems": [{}], "unevaluatedItems": False}, "unevaluatedItems", "the top level"),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames", "the top level"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired", "the top level"),
        ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies", "the top level"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "array", "uniqueItems": True}}}, "uniqueItems", "$defs.x"),
        ({"anyOf": [{"type": "null"}, {"type": "array", "uniqueItems": True}]}, "uniqueItems", "anyOf.1"),
        ({"oneOf": [{"type": "string"}, {"minLength": 3}]}, "oneOf", "the top level"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern", "the top level"),
        ({"type": "string", "pattern": r"(a)\1"}, "pattern", "the top level"),
        ({"patternProperties": {"^a": True, "b$": True}}, "patternProperties", "the top level"),
        ({"patternProperties": {"^(?!a)": True}, "additionalProperties": False}, "patternProperties", "the top level"),
        ({"type": "object", "minProperties": 2}, "minProperties", "the top level"),
        (closed({"a": SMALL, "b": SMALL}, ["a"]) | {"maxProperties": 1}, "maxProperties", "the top level"),
        (closed({"ä\n": {"type": "array", "uniqueItems": True}}), "uniqueItems", r"properties.\xe4\n"),
    ],
)
async def test_a_keyword_that_cannot_be_enforced_is_refused_where_strict_and_else_left_out(
    validator: GrammarValidator, schema: Schema, keyword: str, place: str
) -> None:
    grammar = schema_grammar(schema)
    assert (await validator.compile(grammar)).unenforced == (
        f"response_format: '{keyword}' at {place} is not enforced",
    )
    with pytest.raises(UnsupportedParameter, match=re.escape(f"response_format: '{keyword}' at {place}")) as refusal:
        await validator.compile(dataclasses.replace(grammar, strict=True))
    assert refusal.value.param == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "iban"},
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "string"}},
        {"type": "array", "uniqueItems": False},
        {"type": "array", "uniqueItems": True, "maxItems": 1},
        {"type": "string", "not": {"type": "null"}},
        {"if": {"type": "string"}},
        {"type": "object", "dependentRequired": {}, "minProperties": 0},
        {"type": "string", "pattern": r"\\1\(\?=", "contentMediaType": "text/plain"},
        {"oneOf": [{"type": "string"}, {"type": "integer"}, {"enum": [None, True]}]},
        {
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
            "discriminator": {"propertyName": "kind"},
            "$defs": {name: closed({"kind": {"const": name}}) for name in ("cat", "dog")},
        },
    ],
)
async def test_a_keyword_that_says_nothing_is_left_out_without_a_word(
    validator: GrammarValidator, schema: Schema
) -> None:
    assert (await validator.compile(dataclasses.replace(schema_grammar(schema), strict=True))).unenforced == ()


async def test_each_schema_in_a_grammar_is_named_by_its_label(validator: GrammarValidator) -> None:
    def lark(schema: Schema, strict: bool) -> Grammar:
        labelled = {**schema, SCHEMA_LABEL: {"what": "tool 'f'", "strict": strict}}
        return Grammar("lark", f"start: %json {json.dumps(labelled)}", "tools")

    unique = {"type": "array", "uniqueItems": True}
    compiled = await validator.compile(lark(unique, strict=False))
    assert compiled.unenforced == ("tool 'f': 'uniqueItems' at the top level is not enforced",)
    with pytest.raises(UnsupportedParameter, match="tool 'f': 'uniqueItems'"):
        await validator.compile(lark(unique, strict=True))
    with pytest.raises(InvalidRequest, match=r"tool 'f': .*objekt"):
        await validator.compile(lark({"type": "objekt"}, strict=False))


@settings(max_examples=200)
@given(
    schema=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just({"$ref": "#"}),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
        max_leaves=12,
    )
)
def test_nonsense_in_place_of_a_schema_is_refused_and_breaks_nothing(schema: object) -> None:
    with contextlib.suppress(GrammarRefused):
        translate(Question("json_schema", json.dumps(schema)))


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("json_schema", '{"type": "strng"}', "strng"),
        ("json_schema", '{"type": "string", "minLength": "3"}', "minLength"),
        ("json_schema", '{"$ref": "#/$defs/nowhere"}', "nowhere"),
        ("json_schema", '{"$ref": "https://example.com/schema"}', "example.com"),
        ("json_schema", '{"$ref": "#"}', "nothing matches"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum"),
        ("json_schema", '{"enum": []}', "empty"),
        ("json_schema", '{"type": "string", "pattern": "(ab"}', "pattern.*unclosed group"),
        ("json_schema", "[1]", "object"),
        ("json_schema", '{"type":', "not JSON"),
        ("json_schema", "[" * 100_000, "not JSON"),
        ("json_schema", json.dumps(links(2000)), "references"),
        ("json_schema", '{"items":' * 200 + "{}" + "}" * 200, "nested"),
        ("regex", "(ab", "unclosed group"),
        ("regex", "(?=a)b", "look-ahead"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", "(" * 10_000 + ")" * 10_000, "nested"),
        ("regex", "a\ud800", "surrogate"),
        ("choice", "[]", "no choice"),
        ("choice", '["yes", 3]', "string"),
        ("choice", '"yes"', "list"),
        ("lark", 'start: "a" nowhere', "nowhere"),
        ("lark", 'begin: "a"', "start"),
        ("lark", "start: " + "(" * 10_000, "nested"),
        ("lark", 'start: %json {"type": ', "%json"),
        ("lark", "x" * (MAX_SOURCE_CHARACTERS + 1), "characters"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
async def test_wrong_grammar_is_refused_with_a_reason_on_one_line(
    validator: GrammarValidator, kind: GrammarKind, source: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        await validator.compile(Grammar(kind, source, "guided_this"))
    assert refusal.value.param == "guided_this"
    assert "\n" not in refusal.value.message
    assert len(refusal.value.message) < 600


def chain(links: int) -> Schema:
    definitions = {f"d{n}": {"type": "array", "items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(links)}
    return {"$defs": {**definitions, f"d{links}": {"type": "null"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    "grammar",
    [
        schema_grammar(SLOW),
        schema_grammar(chain(5_000)),
        schema_grammar(closed({f"p{n}": {"type": "integer"} for n in range(500)}, []) | {"minProperties": 1}),
        Grammar("lark", "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(25_000)) + 'r25000: "a"', "x"),
    ],
    ids=["patterns to intersect", "chain of references", "one of many properties", "chain of rules"],
)
async def test_bomb_is_refused_and_the_next_grammar_is_served(validator: GrammarValidator, grammar: Grammar) -> None:
    with pytest.raises(InvalidRequest, match="too much"):
        await validator.compile(grammar)
    assert await validator.compile(Grammar("regex", f"[a-z]{len(grammar.source)}", "guided_regex"))


@pytest.mark.parametrize(
    "grammar",
    [
        schema_grammar({"enum": [f"value number {n}" for n in range(20_000)]}),
        schema_grammar({"type": "array", "items": {"type": "string"}, "minItems": 10**9}),
        schema_grammar({"type": "string", "minLength": 10**9}),
        schema_grammar({"type": "string", "pattern": "^(a|b){1,1000000}$"}),
        schema_grammar(chain(500)),
        Grammar("regex", "a{1,1000000}", "guided_regex"),
        Grammar("regex", "((a|b|c){1,1000}){1,1000}", "guided_regex"),
        Grammar("choice", json.dumps([f"choice {n}" for n in range(5_000)]), "guided_choice"),
    ],
    ids=lambda grammar: grammar.source[:40],
)
async def test_large_numbers_alone_make_no_bomb(validator: GrammarValidator, grammar: Grammar) -> None:
    assert await validator.compile(grammar)


async def test_bomb_holds_up_no_other_grammar(validator: GrammarValidator) -> None:
    bombs = [asyncio.create_task(validator.compile(schema_grammar({**SLOW, "title": str(n)}))) for n in range(2)]
    await asyncio.sleep(0)
    assert await validator.compile(Grammar("regex", "[a-z]{17}", "guided_regex"))
    assert not any(bomb.done() for bomb in bombs)
    assert all(isinstance(outcome, InvalidRequest) for outcome in await asyncio.gather(*bombs, return_exceptions=True))


async def test_grammar_that_was_tried_out_takes_no_process_any_more() -> None:
    before = checkers()
    validator = GrammarValidator()
    grammar = Grammar("regex", "[a-z]+", "guided_regex")
    compiled = await validator.compile(grammar)
    with pytest.raises(InvalidRequest):
        await validator.compile(Grammar("regex", "(", "guided_regex"))
    await validator.close()
    assert await validator.compile(grammar) == compiled
    with pytest.raises(InvalidRequest):
        await validator.compile(Grammar("regex", "(", "guided_regex"))
    assert checkers() == before


async def test_request_that_is_given_up_ends_its_process() -> None:
    before = checkers()
    validator = GrammarValidator()
    task = asyncio.create_task(validator.compile(schema_grammar(SLOW)))
    while checkers() == before:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert checkers() == before
    await validator.close()


async def test_constrained_answer_through_pool_and_worker() -> None:
    before = checkers()
    pool = ModelPoolManager(Catalog(DEMO_MODEL_ID, []), Budget(2**32, 1, 2**26))
    try:
        async with pool.lease(DEMO_MODEL_ID) as model:
            grammar = (await pool.grammars.compile(schema_grammar(SCHEMAS["object"]))).grammar
            tokens: list[int] = []
            params = SamplingParams(seed=1)
            submission = Submit(0, [5, 6], 100, model.stop_tokens, params, grammar)
            async with model.engine.generate([submission]) as sequences:
                async for _, news in sequences:
                    tokens += news.token_ids
            assert news.finish_reason == "stop"
            jsonschema.validate(json.loads(model.tokenizer.decode(tokens[:-1])), SCHEMAS["object"])
            lark = Grammar("lark", "start: <|no_such_token|>", "guided_grammar")
            unknown = (await pool.grammars.compile(lark)).grammar
            with pytest.raises(InvalidRequest, match="no_such_token"):
                async with model.engine.generate([replace(submission, grammar=unknown)]):
                    pass
    finally:
        await pool.cleanup()
    assert checkers() == before
