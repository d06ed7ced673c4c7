"""Answers held to a schema, a pattern, a list or a grammar, seen through the openai package."""

import json
import re
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from tests.running_server import RunningServer

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me about a city. Answer as JSON."}]
FREE: dict[str, Any] = {"model": "demo", "temperature": 1, "max_tokens": 300, "seed": 1}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"enum": ["small", "large"]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


class Street(BaseModel):
    name: str = Field(max_length=10)
    houses: int = Field(ge=1, le=500)


class City(BaseModel):
    kind: Literal["town", "village"]
    streets: list[Street] = Field(max_length=2)
    mayor: Street | None


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="not-needed", max_retries=0)


def json_schema(schema: dict[str, Any], **fields: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


def text_of(client: openai.OpenAI, **parameters: Any) -> str:
    choice = client.chat.completions.create(messages=ASKED, **{**FREE, **parameters}).choices[0]
    assert choice.finish_reason == "stop", choice
    return choice.message.content or ""


def test_a_pydantic_model_is_what_the_answer_parses_to(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(messages=ASKED, response_format=City, **FREE).choices[0].message.parsed
    assert isinstance(parsed, City)


def test_a_stream_is_parsed_as_the_whole_answer_is(client: openai.OpenAI) -> None:
    whole = client.chat.completions.parse(messages=ASKED, response_format=City, **FREE)
    with client.chat.completions.stream(messages=ASKED, response_format=City, **FREE) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed


@pytest.mark.parametrize("strict", [None, True, False])
def test_a_schema_is_followed_strict_or_not(client: openai.OpenAI, strict: bool | None) -> None:
    answer = text_of(client, response_format=json_schema(SCHEMA, strict=strict))
    jsonschema.validate(json.loads(answer), SCHEMA)


def test_a_json_object_is_one_also_of_a_model_that_babbles(client: openai.OpenAI) -> None:
    answers = client.chat.completions.create(
        messages=ASKED, n=3, response_format={"type": "json_object"}, **{**FREE, "model": "babbler", "max_tokens": 2000}
    )
    ended = [choice.message.content or "" for choice in answers.choices if choice.finish_reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(answer), dict) for answer in ended)


def test_every_choice_and_every_stream_is_held_to_the_schema(client: openai.OpenAI) -> None:
    parameters: dict[str, Any] = {**FREE, "n": 4, "response_format": json_schema(SCHEMA)}
    whole = client.chat.completions.create(messages=ASKED, **parameters)
    texts = [""] * 4
    for chunk in client.chat.completions.create(messages=ASKED, stream=True, **parameters):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_text_asks_for_nothing(client: openai.OpenAI) -> None:
    greedy = {"temperature": 0, "max_tokens": 20}
    asked, bare = (
        client.chat.completions.create(messages=ASKED, **{**FREE, **greedy, **parameters}).choices[0].message.content
        for parameters in ({"response_format": {"type": "text"}}, {})
    )
    assert asked == bare


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_guided_json_takes_a_schema_or_its_text(client: openai.OpenAI, schema: object) -> None:
    jsonschema.validate(json.loads(text_of(client, extra_body={"guided_json": schema})), SCHEMA)


def test_guided_regex_choice_and_grammar(client: openai.OpenAI) -> None:
    assert re.fullmatch(r"[0-9]{3}-[a-f]{2}", text_of(client, extra_body={"guided_regex": "[0-9]{3}-[a-f]{2}"}))
    assert text_of(client, extra_body={"guided_choice": ["yes", "no", "per/haps"]}) in ("yes", "no", "per/haps")
    lark = 'start: "<" (/[a-z]/ | start) ">"'
    assert re.fullmatch(r"<+[a-z]>+", text_of(client, extra_body={"guided_grammar": lark}))


def test_a_completion_is_guided_too(client: openai.OpenAI) -> None:
    completion = client.completions.create(
        prompt=["Paris:", "Rome:"], echo=True, extra_body={"guided_regex": " [a-z]{3}!"}, **FREE
    )
    assert all(re.fullmatch(r"(Paris|Rome): [a-z]{3}!", choice.text) for choice in completion.choices)
    assert [choice.finish_reason for choice in completion.choices] == ["stop", "stop"]


LIGHT: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "on": {"type": "boolean"}},
    "required": ["color", "on"],
}


@pytest.mark.parametrize("model", ["demo", "babbler"])
@pytest.mark.parametrize("named", [{"response_format": json_schema(LIGHT)}, {"extra_body": {"guided_json": LIGHT}}])
def test_an_object_that_lists_its_keys_ends_behind_them(
    client: openai.OpenAI, model: str, named: dict[str, Any]
) -> None:
    answer = text_of(client, model=model, **named)
    assert json.loads(answer).keys() == {"color", "on"}
    assert re.fullmatch(r'\{"color": ?"(red|green)", ?"on": ?(true|false)\}', answer)


UNIQUE: dict[str, Any] = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3, "uniqueItems": True}},
    "required": ["tags"],
}


@pytest.mark.parametrize("strict", [None, False])
def test_a_keyword_that_is_not_enforced_is_named_in_a_header(client: openai.OpenAI, strict: bool | None) -> None:
    asked = {**FREE, "messages": ASKED, "response_format": json_schema(UNIQUE, strict=strict)}
    whole = client.chat.completions.with_raw_response.create(**asked)
    streamed = client.chat.completions.with_raw_response.create(stream=True, **asked)
    warning = "response_format: 'uniqueItems' at properties.tags is not enforced"
    assert [answer.headers.get("x-mlx-manager-warning") for answer in (whole, streamed)] == [warning, warning]
    text = whole.parse().choices[0].message.content or ""
    assert text == "".join(chunk.choices[0].delta.content or "" for chunk in streamed.parse() if chunk.choices)
    assert set(json.loads(text)["tags"]) <= {"a", "b"}


def test_what_is_enforced_whole_has_no_warning(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        messages=ASKED, response_format=json_schema(SCHEMA), **FREE
    )
    assert "x-mlx-manager-warning" not in answer.headers


def test_a_keyword_that_is_not_enforced_is_logged_once(client: openai.OpenAI, server: RunningServer) -> None:
    schema = {"type": "object", "properties": {"logged_once": {"not": {"type": "null"}}}}
    for title in ("one", "two"):
        text_of(client, response_format=json_schema({**schema, "title": title}))
    assert server.log.read_text().count("'not' at properties.logged_once is not enforced") == 1


def test_the_warnings_of_a_header_are_bounded_and_in_ascii(client: openai.OpenAI) -> None:
    properties = {f"größe\n{n}": {"type": "array", "uniqueItems": True} for n in range(40)}
    schema = {"type": "object", "properties": properties}
    answer = client.chat.completions.with_raw_response.create(
        messages=ASKED, response_format=json_schema(schema), **FREE
    )
    warning = answer.headers["x-mlx-manager-warning"]
    assert r"properties.gr\xf6\xdfe\n0 is not enforced; response_format: " in warning
    assert warning.endswith("...")
    assert len(warning) < 1100


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({"response_format": json_schema({"type": "objekt"})}, "response_format.json_schema.schema", "objekt"),
        (
            {"response_format": json_schema({"type": "array", "uniqueItems": True}, strict=True)},
            "response_format.json_schema.schema",
            "uniqueItems",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"extra_body": {"guided_json": {"type": 5}}}, "guided_json", "type"),
        ({"extra_body": {"guided_json": "{"}}, "guided_json", "JSON"),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex", "unclosed group"),
        ({"extra_body": {"guided_grammar": "begin: 1"}}, "guided_grammar", "grammar"),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["a"]}}, "guided_choice", "only one"),
        (
            {"response_format": {"type": "json_object"}, "extra_body": {"guided_regex": "a"}},
            "guided_regex",
            "response_format",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused_with_its_field(
    client: openai.OpenAI, fields: dict[str, Any], param: str, named: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(messages=ASKED, **FREE, **fields)
    assert refused.value.param == param
    assert named in refused.value.message


def test_a_schema_nested_beyond_reason_is_refused(client: openai.OpenAI) -> None:
    schema: dict[str, Any] = {}
    for _ in range(150):
        schema = {"not": schema}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(messages=ASKED, response_format=json_schema(schema), **FREE)
    assert refused.value.param == "response_format.json_schema.schema"
