"""Tool calls, seen through the openai package. The demo model calls tools; the others are made to by their grammar."""

import json
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.running_server import RunningServer

WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
PAINT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "size": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["color", "size"],
    "additionalProperties": False,
}


def tool(name: str, description: str, schema: dict[str, Any], **fields: Any) -> Any:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema, **fields}}


WEATHER = tool("get_weather", "Get the weather in a city", WEATHER_SCHEMA)
PAINT = tool("paint_door", "Paint the door", PAINT_SCHEMA, strict=True)
QUESTION: ChatCompletionMessageParam = {"role": "user", "content": "What is the weather in Oslo?"}
HELLO: ChatCompletionMessageParam = {"role": "user", "content": "Hello!"}
GREEDY: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 100}
FREE: dict[str, Any] = {"temperature": 1, "seed": 3, "max_tokens": 300}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="not-needed", max_retries=0)


def calls_of(choice: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]


def test_a_model_calls_a_tool_and_answers_from_its_result(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(messages=[QUESTION], tools=[WEATHER, PAINT], **GREEDY).choices[0]
    assert calls_of(first) == [("get_weather", {"city": "Oslo"})]
    assert (first.finish_reason, first.message.content) == ("tool_calls", None)
    (call,) = first.message.tool_calls or []
    assert call.id.startswith("call_")
    answered: Any = [QUESTION, first.message, {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 7}'}]
    told = client.chat.completions.create(messages=answered, tools=[WEATHER, PAINT], **GREEDY).choices[0]
    assert (told.finish_reason, told.message.tool_calls) == ("stop", None)
    assert "7" in (told.message.content or "")


def test_a_streamed_call_is_named_first_and_its_arguments_follow(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(messages=[QUESTION], tools=[WEATHER], stream=True, **GREEDY)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    parts = [part for choice in choices for part in choice.delta.tool_calls or []]
    assert (parts[0].index, parts[0].type) == (0, "function")
    assert parts[0].function is not None
    assert (parts[0].function.name, parts[0].function.arguments) == ("get_weather", "")
    assert (parts[0].id or "").startswith("call_")
    assert all(part.id is None and part.index == 0 for part in parts[1:])
    arguments = "".join(part.function.arguments or "" for part in parts if part.function)
    assert json.loads(arguments) == {"city": "Oslo"}
    assert choices[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("parameters", [{}, {"tool_choice": "auto"}])
def test_a_question_that_is_not_for_the_tools_is_answered(client: openai.OpenAI, parameters: dict[str, Any]) -> None:
    choice = client.chat.completions.create(messages=[HELLO], tools=[WEATHER], **parameters, **GREEDY).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
    assert choice.message.content


def test_tools_that_must_not_be_called_are_not(client: openai.OpenAI) -> None:
    none = client.chat.completions.create(messages=[QUESTION], tools=[WEATHER], tool_choice="none", **GREEDY)
    bare = client.chat.completions.create(messages=[QUESTION], **GREEDY)
    assert none.choices == bare.choices
    assert none.choices[0].message.tool_calls is None


@pytest.mark.parametrize("model", ["demo", "babbler"])
def test_a_required_call_is_made_with_arguments_as_the_schema_has_them(client: openai.OpenAI, model: str) -> None:
    many = client.chat.completions.create(
        model=model,
        messages=[HELLO],
        tools=[WEATHER, PAINT],
        tool_choice="required",
        parallel_tool_calls=False,
        n=4,
        **FREE,
    )
    ended = [choice for choice in many.choices if choice.finish_reason == "tool_calls"]
    assert ended
    for choice in ended:
        ((name, arguments),) = calls_of(choice)
        jsonschema.validate(arguments, {"get_weather": WEATHER_SCHEMA, "paint_door": PAINT_SCHEMA}[name])
        assert not choice.message.content


UNIQUE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2, "uniqueItems": True}},
}


def test_a_keyword_that_is_not_enforced_is_named_with_its_tool(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"messages": [HELLO], "tool_choice": "required", **FREE, "model": "demo"}
    tagged = tool("set_tags", "Tag it", UNIQUE_SCHEMA)
    raw = client.chat.completions.with_raw_response.create(tools=[WEATHER, tagged], **asked)
    assert raw.headers["x-mlx-manager-warning"] == "tool 'set_tags': 'uniqueItems' at properties.tags is not enforced"
    assert raw.parse().choices[0].message.tool_calls


def test_a_keyword_that_is_not_enforced_is_refused_where_strict_with_its_tool(client: openai.OpenAI) -> None:
    tagged = tool("set_tags", "Tag it", UNIQUE_SCHEMA, strict=True)
    with pytest.raises(openai.BadRequestError, match=r"tool 'set_tags': 'uniqueItems' at properties\.tags") as refused:
        client.chat.completions.create(messages=[HELLO], tools=[WEATHER, tagged], tool_choice="required", **GREEDY)
    assert refused.value.param == "tools"


def test_a_tool_whose_schema_is_wrong_is_named(client: openai.OpenAI) -> None:
    wrong = tool("set_tags", "Tag it", {"type": "object", "properties": {"a": {"type": "objekt"}}})
    with pytest.raises(openai.BadRequestError, match=r"tool 'set_tags': .*objekt"):
        client.chat.completions.create(messages=[HELLO], tools=[WEATHER, wrong], tool_choice="required", **GREEDY)


def test_arguments_have_the_keys_that_the_tool_lists_and_no_others(client: openai.OpenAI) -> None:
    light = tool("set_light", "Set the light", {"type": "object", "properties": {"on": {"type": "boolean"}}})
    bare = tool("now", "The time", {"type": "object", "properties": {}})
    many = client.chat.completions.create(
        model="babbler", messages=[HELLO], tools=[light, bare], tool_choice="required", n=6, **FREE
    )
    made = [call for choice in many.choices for call in calls_of(choice) if choice.finish_reason == "tool_calls"]
    assert made
    assert all(arguments in ({}, {"on": True}, {"on": False}) for _, arguments in made)


@pytest.mark.parametrize("stream", [False, True])
def test_the_named_tool_is_called_once(client: openai.OpenAI, stream: bool) -> None:
    parameters: dict[str, Any] = {
        "messages": [QUESTION],
        "tools": [WEATHER, PAINT],
        "tool_choice": {"type": "function", "function": {"name": "paint_door"}},
        **GREEDY,
    }
    if stream:
        with client.chat.completions.stream(**parameters) as running:
            choice: Any = running.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**parameters).choices[0]
    ((name, arguments),) = calls_of(choice)
    assert name == "paint_door"
    jsonschema.validate(arguments, PAINT_SCHEMA)
    assert choice.finish_reason == "tool_calls"


def test_of_parallel_calls_one_is_made_where_they_are_not_wanted(client: openai.OpenAI) -> None:
    def made(parallel: bool) -> Any:
        return client.chat.completions.create(
            messages=[QUESTION],
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=parallel,
            logit_bias={"2039": -100, "2043": -100, "2044": -100},  # so that the model goes on with calls
            **GREEDY,
        ).choices[0]

    assert len(calls_of(made(False))) == 1
    several = made(True).message.tool_calls
    assert len(several) > 1
    assert len({call.id for call in several}) == len(several)


def test_an_answer_of_a_form_may_be_a_call_all_the_same(client: openai.OpenAI) -> None:
    schema = {"enum": [{"word": "yes"}, {"word": "no"}]}
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    called = client.chat.completions.create(
        messages=[QUESTION], tools=[WEATHER], response_format=response_format, **GREEDY
    ).choices[0]
    assert calls_of(called) == [("get_weather", {"city": "Oslo"})]
    held = client.chat.completions.create(
        messages=[QUESTION], tools=[WEATHER], tool_choice="none", response_format=response_format, **GREEDY
    ).choices[0]
    jsonschema.validate(json.loads(held.message.content or ""), schema)


def test_a_call_that_is_cut_off_stays_as_far_as_it_was_written_and_its_text_is_content(client: openai.OpenAI) -> None:
    cut = {**GREEDY, "max_tokens": 12}
    choice = client.chat.completions.create(messages=[QUESTION], tools=[WEATHER], **cut).choices[0]
    assert choice.finish_reason == "length"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert (choice.message.content or "").endswith(call.function.arguments)


@pytest.mark.parametrize(
    ("parameters", "param", "named"),
    [
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "'f'"),
        ({"tool_choice": "required"}, "tool_choice", "tools is empty"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "get_weather"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "custom"),
        ({"tools": [tool("f", "", {"type": "array"})]}, "tools[0].function.parameters", "object"),
        ({"tools": [tool("f", "", {"not": {"required": ["x"]}}, strict=True)], "tool_choice": "required"},
         "tools", "not"),
        ({"tools": [WEATHER], "extra_body": {"guided_regex": "a"}}, "guided_regex", "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions", "functions"),
        ({"function_call": "auto"}, "function_call", "function_call"),
    ],
    ids=str,
)  # fmt: skip
def test_tools_that_cannot_be_used_as_asked_are_refused_with_their_field(
    client: openai.OpenAI, parameters: dict[str, Any], param: str, named: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(messages=[HELLO], **parameters, **GREEDY)
    assert refused.value.param == param
    assert named in refused.value.message
