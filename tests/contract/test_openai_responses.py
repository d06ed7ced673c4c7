"""The openai package's Responses API against the running server: what an application sees."""

import json
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import Response, ResponseCustomToolCall, ResponseFunctionToolCall, ResponseReasoningItem
from pydantic import BaseModel

from tests.running_server import RunningServer

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city",
    "parameters": PARAMETERS,
    "strict": True,
}
LARK = 'start: "*** Begin" LF LINE+ "*** End"\nLINE: "+" /[a-z]{1,5}/ LF\n%import common.LF\n'
PATCH: Any = {
    "type": "custom",
    "name": "patch",
    "description": "Change files",
    "format": {"type": "grammar", "syntax": "lark", "definition": LARK},
}
CODE: Any = {
    "type": "custom",
    "name": "code",
    "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]{3}/[a-c]"},
}
QUESTION = "What is the weather in Oslo?"


class Light(BaseModel):
    """A light."""

    color: Literal["red", "green"]
    on: bool


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="not-needed", max_retries=0)


def test_a_text_is_answered(client: openai.OpenAI) -> None:
    response = client.responses.create(model="demo", input="Count to 5", temperature=0)
    assert response.output_text == "1, 2, 3, 4, 5"
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert response.usage is not None
    assert (response.usage.output_tokens, response.usage.total_tokens) == (14, response.usage.input_tokens + 14)
    Response.model_validate(response.model_dump())


def test_instructions_and_items_are_the_conversation(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="demo",
        instructions="You are a helpful assistant.",
        input=[
            {"role": "user", "content": "Count to 3"},
            {"role": "assistant", "content": "1, 2, 3"},
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "Count to 4"}]},
        ],
        temperature=0,
    )
    assert response.output_text == "1, 2, 3, 4"


def test_the_stream_helper_gives_the_final_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="demo", input="Count to 5", temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "1, 2, 3, 4, 5"
    assert client.responses.retrieve(final.id).output_text == text


def test_a_limit_makes_the_response_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model="demo", input="Count to 5", temperature=0, max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_thoughts_are_an_item_and_come_back(client: openai.OpenAI) -> None:
    options: Any = {"model": "demo", "temperature": 0, "store": False, "include": ["reasoning.encrypted_content"]}
    reasoning: Any = {"effort": "high", "summary": "auto"}
    first = client.responses.create(input="Count to 3", reasoning=reasoning, **options)
    thoughts, message = first.output
    assert isinstance(thoughts, ResponseReasoningItem)
    assert thoughts.content is not None
    assert thoughts.content[0].text == thoughts.summary[0].text != ""
    assert thoughts.encrypted_content
    items: Any = [thoughts.model_dump(exclude_none=True), message.model_dump(exclude_none=True)]
    second = client.responses.create(input=[*items, {"role": "user", "content": "Count to 4"}], **options)
    assert second.output_text == "1, 2, 3, 4"


def test_parse_gives_the_model(client: openai.OpenAI) -> None:
    response = client.responses.parse(model="demo", input="A red light", text_format=Light, max_output_tokens=60)
    assert isinstance(response.output_parsed, Light)


def test_logprobs_spell_the_text(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "input": "Count to 3", "temperature": 0, "top_logprobs": 2}
    response = client.responses.create(include=["message.output_text.logprobs"], **asked)
    (part,) = response.output[0].content
    assert "".join(entry.token for entry in part.logprobs) == part.text == "1, 2, 3"


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "demo", "temperature": 0, "tools": [WEATHER]}
    if stream:
        with client.responses.stream(input=QUESTION, **asked) as events:
            response: Any = events.get_final_response()
    else:
        response = client.responses.create(input=QUESTION, **asked)
    (call,) = (item for item in response.output if item.type == "function_call")
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Oslo"})
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": '{"degrees": 7}'}
    told = client.responses.create(input=[result], previous_response_id=response.id, **asked)
    assert "7" in told.output_text
    again: Any = [{"role": "user", "content": QUESTION}, call.model_dump(exclude={"parsed_arguments"}), result]
    assert client.responses.create(input=again, **asked).output_text == told.output_text


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
    ],
)
def test_a_function_that_is_chosen_is_called(client: openai.OpenAI, choice: Any) -> None:
    response = client.responses.create(
        model="demo", input="Hello", tools=[CODE, WEATHER], tool_choice=choice, parallel_tool_calls=False
    )
    (call,) = (item for item in response.output if item.type != "reasoning")
    assert isinstance(call, ResponseFunctionToolCall)
    assert json.loads(call.arguments).keys() == {"city"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_custom_tool_gets_text_that_its_grammar_describes(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "demo", "input": "Hello", "tools": [PATCH, CODE, WEATHER]}
    choice: Any = {"type": "custom", "name": "code"}
    if stream:
        with client.responses.stream(tool_choice=choice, **asked) as events:
            deltas = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
            output: Any = events.get_final_response().output
    else:
        output = client.responses.create(tool_choice=choice, **asked).output
    (call,) = (item for item in output if item.type != "reasoning")
    assert isinstance(call, ResponseCustomToolCall)
    assert call.name == "code"
    digits, letter = call.input.split("/")
    assert digits.isdigit()
    assert letter in ("a", "b", "c")
    if stream:
        assert "".join(deltas) == call.input
    answer: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"}
    history: Any = [{"role": "user", "content": "Hello"}, call.model_dump(exclude_none=True), answer]
    told = client.responses.create(**{**asked, "input": history, "max_output_tokens": 8})
    assert told.usage is not None


def test_a_namespace_is_put_back_on_the_call(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "namespace", "name": "town", "description": "Towns", "tools": [WEATHER]}]
    response = client.responses.create(model="demo", input=QUESTION, tools=tools, temperature=0)
    (call,) = (item for item in response.output if item.type == "function_call")
    assert (call.name, call.namespace) == ("get_weather", "town")


def test_a_hosted_tool_beside_others_is_left_out_with_a_warning(client: openai.OpenAI) -> None:
    tools: Any = [WEATHER, {"type": "web_search"}]
    raw = client.responses.with_raw_response.create(model="demo", input="Count to 3", tools=tools, temperature=0)
    assert "'web_search'" in raw.headers["x-mlx-manager-warning"]
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.create(model="demo", input="Hi", tools=tools[1:])
    assert refusal.value.param == "tools[0].type"


def test_input_tokens_are_those_of_the_answer(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "input": QUESTION, "instructions": "Be brief.", "tools": [WEATHER, PATCH]}
    counted = client.responses.input_tokens.count(**asked)
    usage = client.responses.create(max_output_tokens=1, **asked).usage
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens > 100


def test_a_conversation_goes_on_from_a_stored_response(client: openai.OpenAI) -> None:
    first = client.responses.create(model="demo", input="Count to 3", temperature=0)
    second = client.responses.create(model="demo", input="Count to 4", previous_response_id=first.id, temperature=0)
    assert second.output_text == "1, 2, 3, 4"
    assert second.previous_response_id == first.id
    items = list(client.responses.input_items.list(second.id, order="asc"))
    assert [getattr(item, "role", None) for item in items] == ["user", "assistant", "user"]
    newest = client.responses.input_items.list(second.id, limit=1)
    assert (newest.has_more, newest.data[0].id) == (True, items[-1].id)
    rest = client.responses.input_items.list(second.id, after=newest.data[0].id or "")
    assert [item.id for item in rest.data] == [item.id for item in reversed(items[:-1])]
    reference: Any = [{"type": "item_reference", "id": items[0].id}]
    assert client.responses.create(model="demo", input=reference, temperature=0).output_text == "1, 2, 3"


def test_a_response_can_be_fetched_until_it_is_deleted(client: openai.OpenAI) -> None:
    response = client.responses.create(model="demo", input="Count to 3")
    assert client.responses.retrieve(response.id).model_dump() == response.model_dump()
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.create(model="demo", input="Hi", previous_response_id=response.id)
    assert (refusal.value.code, refusal.value.param) == ("previous_response_not_found", "previous_response_id")


def test_what_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    response = client.responses.create(model="demo", input="Count to 3", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_a_stored_response_is_not_streamed_again(client: openai.OpenAI) -> None:
    response = client.responses.create(model="demo", input="Count to 3")
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.retrieve(response.id, stream=True)
    assert refusal.value.param == "stream"


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"temperature": 5}, 400, "validation_error", "temperature"),
        ({"input": [{"role": "nobody", "content": "x"}]}, 400, "validation_error", "input[0].role"),
        ({"background": True}, 400, "unsupported_parameter", "background"),
        ({"conversation": "conv_1"}, 400, "unsupported_parameter", "conversation"),
        ({"prompt": {"id": "x"}}, 400, "unsupported_parameter", "prompt"),
        ({"model": "nobody"}, 404, "model_not_found", "model"),
        ({"previous_response_id": "resp_0"}, 400, "previous_response_not_found", "previous_response_id"),
        ({"model": "babbler", "input": "a " * 9000}, 400, "context_length_exceeded", "input"),
        (
            {"tools": [{**PATCH, "format": {"type": "grammar", "syntax": "lark", "definition": "start: ("}}]},
            400,
            "invalid_request",
            "tools[0].format.definition",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_openais(
    client: openai.OpenAI, fields: dict[str, Any], status: int, code: str, param: str, stream: bool
) -> None:
    body: Any = {"model": "demo", "input": "Hi", "stream": stream, **fields}
    with pytest.raises(openai.APIStatusError) as refusal:
        client.post("/responses", body=body, cast_to=object)
    error = refusal.value
    assert (error.status_code, error.code, error.param) == (status, code, param)


def test_the_oldest_turns_go_where_that_is_asked_for(client: openai.OpenAI) -> None:
    turns: Any = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"{i} " + "a " * 900} for i in range(15)]
    asked: Any = {"model": "babbler", "instructions": "Be brief.", "max_output_tokens": 4}
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.create(input=turns, **asked)
    assert refusal.value.code == "context_length_exceeded"
    raw = client.responses.with_raw_response.create(input=turns, truncation="auto", **asked)
    assert "oldest" in raw.headers["x-mlx-manager-warning"]
    assert raw.parse().usage.input_tokens > 4000


def test_codex_finds_every_model_in_the_shape_of_its_catalogue(server: RunningServer, client: openai.OpenAI) -> None:
    listed = client.get("/models", cast_to=dict[str, Any])
    models = {model["slug"]: model for model in listed["models"]}
    assert list(models) == [model["id"] for model in listed["data"] if model["capabilities"]["chat"] is not False]
    demo = models["demo"]
    assert (demo["context_window"], demo["apply_patch_tool_type"], demo["shell_type"]) == (
        8192,
        "freeform",
        "shell_command",
    )
    assert {level["effort"] for level in demo["supported_reasoning_levels"]} == {"low", "medium", "high"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_is_prewarmed_without_an_answer(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {
        "model": "demo",
        "input": f"Prewarmed {stream}: {'count to 5, and then to 9. ' * 9}",
        "temperature": 0,
    }
    prewarming: Any = {**asked, "prompt_cache_options": {"prewarm": True}}
    if stream:
        *_, last = client.responses.create(**prewarming, stream=True)
        warmed = last.response
    else:
        warmed = client.responses.create(**prewarming)
    assert (warmed.status, warmed.output, warmed.incomplete_details) == ("completed", [], None)
    assert warmed.usage.output_tokens == 0
    response = client.responses.create(**asked)
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == warmed.usage.input_tokens - 1
    assert response.output_text
