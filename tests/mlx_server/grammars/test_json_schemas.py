"""Which JSON a schema's grammar takes: objects that list their keys have no others."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.grammars.sources import translate
from mlx_manager.mlx_server.grammars.verdict import Question
from mlx_manager.mlx_server.types import ENFORCED_FORMATS
from tests.mlx_server.engine.json_schemas import SCHEMAS, Schema

NUMBER: Schema = {"type": "integer"}


@pytest.fixture(scope="module")
def vocabulary() -> LLTokenizer:
    return LLTokenizer(str(demo_model_path() / "tokenizer.json"))


def keys(*names: str, **more: Any) -> Schema:
    return {"type": "object", "properties": dict.fromkeys(names, NUMBER), **more}


def accepts(vocabulary: LLTokenizer, schema: Schema, text: str) -> bool:
    grammar = translate(Question("json_schema", json.dumps(schema))).text
    assert LLMatcher.validate_grammar(grammar, vocabulary) == ""
    matcher = LLMatcher(vocabulary, grammar)
    tokens = vocabulary.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


NODE = keys("v")
NODE["properties"]["next"] = {"$ref": "#/$defs/node"}
WRAPPED = keys("v")
WRAPPED["properties"]["child"] = {"allOf": [{"$ref": "#/definitions/node"}], "title": "Child"}
CAT, DOG = (
    {"type": "object", "properties": {"kind": {"const": kind}, name: NUMBER}, "required": ["kind"]}
    for kind, name in (("cat", "lives"), ("dog", "tricks"))
)

CLOSED: dict[str, tuple[Schema, list[object], list[object]]] = {
    "properties": (keys("a", "b", required=["a"]), [{"a": 1}, {"a": 1, "b": 2}], [{"a": 1, "c": 3}, {"b": 1}]),
    "no type": ({"properties": {"a": NUMBER}}, [{"a": 1}, 3], [{"b": 1}]),
    "several types": (keys("a") | {"type": ["object", "null"]}, [{"a": 1}, None], [{"b": 1}]),
    "no properties": ({"type": "object", "properties": {}}, [{}], [{"a": 1}]),
    "required and not listed": (
        keys("a", required=["a", "b"]),
        [{"a": 1, "b": "x"}],
        [{"a": 1}, {"a": 1, "b": 1, "c": 1}],
    ),
    "in items": ({"type": "array", "items": keys("a")}, [[{"a": 1}]], [[{"b": 1}]]),
    "in prefixItems": ({"type": "array", "prefixItems": [keys("a")]}, [[{"a": 1}]], [[{"b": 1}]]),
    "in a map": ({"type": "object", "additionalProperties": keys("a")}, [{"x": {"a": 1}}], [{"x": {"b": 1}}]),
    "all of": ({"allOf": [keys("a"), keys("b", required=["b"])]}, [{"a": 1, "b": 2}], [{"a": 1}, {"b": 2, "c": 3}]),
    "all of beside properties": (
        keys("a") | {"allOf": [{"properties": {"b": NUMBER}}]},
        [{"b": 1}, {"a": 1}],
        [{"c": 1}],
    ),
    "any of": (
        {"anyOf": [keys("a", required=["a"]), keys("b", required=["b"])]},
        [{"a": 1}, {"b": 2}],
        [{"a": 1, "b": 2}, {}],
    ),
    "any of beside properties": (
        keys("k") | {"anyOf": [keys("a", required=["a"]), keys("b", required=["b"])]},
        [{"k": 1, "a": 1}, {"k": 1, "b": 1}, {"b": 1}],
        [{"k": 1}, {"a": 1, "b": 2}, {"a": 1, "c": 1}],
    ),
    "any of what is required": (
        keys("a", "b") | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
        [{}, {"a": 1, "c": 1}],
    ),
    "all of any of": (
        {"allOf": [{"anyOf": [keys("a"), keys("b")]}, {"anyOf": [keys("c"), keys("d")]}]},
        [{"a": 1, "c": 1}, {"b": 1, "d": 1}, {}],
        [{"a": 1, "b": 1}, {"c": 1, "d": 1}],
    ),
    "one open branch": (
        {"anyOf": [keys("a", required=["a"], additionalProperties=True), keys("b")]},
        [{"a": 1, "x": 1}, {"b": 1}],
        [{"b": 1, "x": 1}],
    ),
    "or null": ({"anyOf": [keys("a"), {"type": "null"}]}, [{"a": 1}, None], [{"b": 1}]),
    "one of by a tag": (
        {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "$defs": {"cat": CAT, "dog": DOG}},
        [{"kind": "cat", "lives": 9}, {"kind": "dog", "tricks": 1}],
        [{"kind": "cat", "tricks": 1}],
    ),
    "reference": (
        {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
        [{"v": 1, "next": {"v": 2, "next": {}}}],
        [{"x": 1}, {"v": 1, "next": {"x": 2}}],
    ),
    "reference to the root": (
        keys("v") | {"properties": {"v": NUMBER, "kids": {"type": "array", "items": {"$ref": "#"}}}},
        [{"v": 1, "kids": [{"v": 2}]}],
        [{"kids": [{"x": 2}]}],
    ),
    "reference to a property": (
        {"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": keys("x")}},
        [{"a": {"x": 1}}],
        [{"a": {"y": 1}}],
    ),
    "one definition alone and merged": (
        {
            "type": "object",
            "properties": {"one": {"$ref": "#/$defs/node"}, "more": {"allOf": [{"$ref": "#/$defs/node"}, keys("x")]}},
            "$defs": {"node": NODE},
        },
        [{"one": {"v": 1}, "more": {"v": 1, "next": {"v": 2}, "x": 3}}],
        [{"one": {"x": 1}}, {"more": {"next": {"x": 1}}}, {"more": {"y": 1}}],
    ),
    "reference to an anchor": (
        {"$ref": "#thing", "$defs": {"x": {"$anchor": "thing", **keys("a")}}},
        [{"a": 1}],
        [{"b": 1}],
    ),
    "reference to an id": (
        {"$id": "T0", "type": "object", "properties": {"next": {"$ref": "T0"}, "more": {"$ref": "#"}}},
        [{"next": {"next": {}}, "more": {"more": {}}}],
        [{"x": 1}, {"next": {"x": 1}}],
    ),
    "reference into an address": (
        {"$id": "https://example.com/s", "$ref": "https://example.com/s#/$defs/node", "$defs": {"node": NODE}},
        [{"v": 1, "next": {"v": 2}}],
        [{"x": 1}, {"next": {"x": 1}}],
    ),
    "reference beside properties": (
        {"$ref": "#/$defs/node", "properties": {"x": NUMBER}, "$defs": {"node": NODE}},
        [{"v": 1, "next": {"v": 2}, "x": 3}],
        [{"next": {"x": 1}}, {"y": 1}],
    ),
    "reference wrapped in all of, recursive, draft 7": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$ref": "#/definitions/node",
            "definitions": {"node": WRAPPED},
        },
        [{"v": 1, "child": {"v": 2}}],
        [{"child": {"x": 2}}],
    ),
    "pattern properties": (
        keys("a") | {"patternProperties": {"^k": NUMBER}},
        [{"a": 1, "k1": 2}, {"k": 1}],
        [{"x": 1}, {"k1": "x"}],
    ),
    "pattern properties that are required": (
        {"type": "object", "patternProperties": {"^k": NUMBER}, "required": ["k1"]},
        [{"k1": 1}],
        [{"k1": "x"}, {"k1": 1, "x": 1}],
    ),
    "pattern properties merged": (
        {"allOf": [{"patternProperties": {"^k": NUMBER}}, keys("a")]},
        [{"a": 1, "k1": 2}],
        [{"x": 1}, {"k1": "x"}],
    ),
    "unevaluated properties": (
        {"allOf": [keys("a"), keys("b")], "unevaluatedProperties": False},
        [{"a": 1, "b": 1}],
        [{"c": 1}],
    ),
    "unevaluated properties of a schema": (
        keys("a", unevaluatedProperties={"type": "string"}),
        [{"a": 1, "c": "x"}],
        [{"c": 1}],
    ),
    "a key of a condition": (
        keys("a") | {"if": {"required": ["a"]}, "then": {"required": ["b"]}},
        [{"a": 1, "b": "x"}],
        [{"c": 1}],
    ),
}
OPEN: dict[str, tuple[Schema, object]] = {
    "additionalProperties true": (keys("a", additionalProperties=True), {"a": 1, "b": 2}),
    "additionalProperties of a schema": (keys("a", additionalProperties={"type": "string"}), {"a": 1, "b": "x"}),
    "additionalProperties true in a part": (
        {"allOf": [keys("a", additionalProperties=True), keys("b")]},
        {"b": 2, "c": 3},
    ),
    "branches of an open object": (
        keys("a", additionalProperties=True) | {"anyOf": [keys("b"), keys("c")]},
        {"a": 1, "x": 1},
    ),
    "unevaluatedProperties true": (keys("a", unevaluatedProperties=True), {"a": 1, "b": 2}),
    "nothing is listed": ({"type": "object"}, {"b": {"c": 1}}),
    "nothing is said": ({}, {"b": [{"c": 1}]}),
}


@pytest.mark.parametrize("name", CLOSED)
def test_an_object_that_lists_its_keys_has_no_others(vocabulary: LLTokenizer, name: str) -> None:
    schema, right, wrong = CLOSED[name]
    assert [value for value in right if not accepts(vocabulary, schema, json.dumps(value))] == []
    assert [value for value in wrong if accepts(vocabulary, schema, json.dumps(value))] == []


@pytest.mark.parametrize("name", OPEN)
def test_an_object_that_says_what_else_it_may_hold_stays_open(vocabulary: LLTokenizer, name: str) -> None:
    schema, value = OPEN[name]
    assert accepts(vocabulary, schema, json.dumps(value))


@pytest.mark.parametrize("name", sorted(ENFORCED_FORMATS))
def test_a_format_that_is_enforced_is_one_of_llguidances(vocabulary: LLTokenizer, name: str) -> None:
    assert not accepts(vocabulary, {"type": "string", "format": name}, '"?!"')


@pytest.mark.parametrize("text", ['{"a": 1, "b": [2, 3]}', '{"a":1,"b":[2,3]}', '{"a": 1, "b": []}'])
def test_json_is_written_as_people_and_models_write_it(vocabulary: LLTokenizer, text: str) -> None:
    assert accepts(vocabulary, {"type": "object"}, text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a"\n:\n1}',
        '{"a" : 1}',
        '{"a":  1}',
        '{"a":\n1}',
        '{"a": 1 , "b": 2}',
        '{ "a": 1}',
        '{"a": [\n\n1]}',
        '{"a": 1,\n\n"b": 2}',
    ],
)
def test_whitespace_that_lays_nothing_out_is_not_taken(vocabulary: LLTokenizer, text: str) -> None:
    assert not accepts(vocabulary, {"type": "object"}, text)


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_was_rewritten_is_not_changed_again(name: str) -> None:
    ((_, once),) = translate(Question("json_schema", json.dumps(SCHEMAS[name]))).parts
    ((_, twice),) = translate(Question("json_schema", json.dumps(once))).parts
    assert twice == once
