"""For every parameter that shapes an answer, on the real server: the stream folds to the response."""

from typing import Any

import pytest

from tests import folding
from tests.running_server import RunningServer, chunks_of

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather in a city", "parameters": PARAMETERS},
}
QUESTION = [{"role": "user", "content": "What is the weather in Oslo?"}]
CHAT: list[dict[str, Any]] = [
    {},
    {"n": 3, "temperature": 1},
    {"n": 3, "temperature": 1, "logprobs": True, "top_logprobs": 3, "stop": ["a", "the"]},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 20, "temperature": 1.5, "max_tokens": 60},
    {"stop": [", and", " fox"], "include_stop_str_in_output": True, "logprobs": True},
    {"stop": ["e"], "min_tokens": 9},
    {"ignore_eos": True, "skip_special_tokens": False, "max_tokens": 60, "logprobs": True},
    {"logit_bias": {"20": 5}, "presence_penalty": 1, "repeat_penalty": 1.2, "top_k": 5},
    {"stop_token_ids": [11], "max_tokens": 60},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"reasoning_effort": "high", "n": 2},
    {"enable_thinking": True, "thinking_budget": 4, "logprobs": True, "top_logprobs": 1},
    {"enable_thinking": True, "stop": ["a"], "logprobs": True},
    {"response_format": {"type": "json_object"}, "n": 2, "temperature": 1},
    {"guided_regex": "[a-c]{5,9}", "logprobs": True},
    {"tools": [WEATHER]},
    {"tools": [WEATHER], "messages": QUESTION, "logprobs": True},
    {"tools": [WEATHER], "messages": QUESTION, "skip_special_tokens": False, "include_stop_str_in_output": True},
    {"tools": [WEATHER], "messages": QUESTION, "max_tokens": 12},
    {"tools": [WEATHER], "messages": QUESTION, "parallel_tool_calls": False, "n": 2, "temperature": 1},
    {"tools": [WEATHER], "tool_choice": "required", "enable_thinking": True, "n": 3, "temperature": 1},
    {"tools": [WEATHER], "tool_choice": "required", "ignore_eos": True, "logprobs": True},
    {"tools": [WEATHER], "response_format": {"type": "json_object"}, "messages": QUESTION, "stop": ["x"]},
    {"tools": [WEATHER], "tool_choice": "required", "model": "babbler", "temperature": 1, "n": 3},
]
COMPLETIONS: list[dict[str, Any]] = [
    {},
    {"prompt": ["Once", "There was", "Once"], "n": 2, "temperature": 1},
    {"prompt": [5, 6, 7], "echo": True, "logprobs": 2},
    {"prompt": [[5, 6, 7], [9]], "echo": True, "logprobs": 0},
    {"echo": True, "n": 2, "logprobs": 5, "temperature": 1},
    {"echo": True, "max_tokens": 0, "logprobs": 1},
    {"echo": True, "max_tokens": 0},
    {"logprobs": 3, "stop": [" a"], "max_tokens": 40},
    {"prompt": "El niño dijo 😀 時", "echo": True, "logprobs": 1},
    {"ignore_eos": True, "skip_special_tokens": False, "min_tokens": 5, "logprobs": 1},
]

CLIENT_TOOL = {"name": "get_weather", "description": "Get the weather in a city", "input_schema": PARAMETERS}
JSON_OBJECT = {"type": "json_schema", "schema": {"type": "object", "properties": {"n": {"type": "integer"}}}}
THINKING = {"type": "enabled", "budget_tokens": 20}
MESSAGES: list[dict[str, Any]] = [
    {},
    {"max_tokens": 0},
    {"max_tokens": 1},
    {"stop_sequences": [", and", " fox", "e"]},
    {"system": [{"type": "text", "text": "You are terse.", "cache_control": {"type": "ephemeral"}}]},
    {"thinking": THINKING},
    {"thinking": {**THINKING, "display": "omitted"}},
    {"thinking": {**THINKING, "budget_tokens": 0}},
    {"thinking": THINKING, "stop_sequences": ["a"]},
    {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high", "format": JSON_OBJECT}},
    {"tools": [CLIENT_TOOL], "messages": QUESTION},
    {"tools": [CLIENT_TOOL], "messages": QUESTION, "max_tokens": 12},
    {"tools": [CLIENT_TOOL], "tool_choice": {"type": "any"}},
    {"tools": [CLIENT_TOOL], "tool_choice": {"type": "tool", "name": "get_weather"}, "thinking": THINKING},
    {"tools": [CLIENT_TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 9},
    {"messages": [*QUESTION, {"role": "assistant", "content": "It is"}]},
    {"model": "babbler", "tools": [CLIENT_TOOL], "tool_choice": {"type": "any"}},
]


FUNCTION = {"type": "function", "name": "get_weather", "description": "Get the weather", "parameters": PARAMETERS}
CODE = {"type": "custom", "name": "code", "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]{9}"}}
SUMMARY = {"effort": "high", "summary": "auto"}
RESPONSES: list[dict[str, Any]] = [
    {},
    {"max_output_tokens": 1},
    {"top_logprobs": 3, "include": ["message.output_text.logprobs"]},
    {"reasoning": SUMMARY, "include": ["reasoning.encrypted_content"]},
    {"reasoning": SUMMARY, "max_output_tokens": 5},
    {"instructions": "You are terse.", "truncation": "auto", "store": False},
    {"text": {"format": {"type": "json_object"}}},
    {"tools": [FUNCTION], "input": QUESTION},
    {"tools": [FUNCTION], "input": QUESTION, "max_output_tokens": 12},
    {"tools": [FUNCTION, CODE], "tool_choice": "required"},
    {"tools": [FUNCTION, CODE], "tool_choice": {"type": "custom", "name": "code"}, "max_output_tokens": 100},
    {"tools": [FUNCTION, CODE], "tool_choice": {"type": "custom", "name": "code"}, "max_output_tokens": 30},
    {"tools": [{"type": "namespace", "name": "town", "tools": [FUNCTION]}, CODE], "input": QUESTION},
    {"tools": [FUNCTION, CODE], "input": QUESTION, "text": {"format": {"type": "json_object"}}},
    {"model": "babbler", "tools": [CODE], "tool_choice": "required", "parallel_tool_calls": False},
]


def without_identity(answer: dict[str, Any]) -> dict[str, Any]:
    """Nor with what the prefix cache had, which is more for the second one, nor with the ids of calls."""
    usage = {name: count for name, count in answer["usage"].items() if name != "prompt_tokens_details"}
    calls = [call for choice in answer["choices"] for call in choice.get("tool_calls", [])]
    assert len({call.pop("id") for call in calls}) == len(calls)
    return {**answer, "id": None, "created": None, "usage": usage}


@pytest.mark.parametrize("parameters", CHAT, ids=str)
def test_folding_the_stream_of_a_chat_gives_the_response(server: RunningServer, parameters: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "Tell me a story with 😀 and 時."}]
    body = {"model": "demo", "messages": messages, "temperature": 0, "seed": 4, "max_tokens": 40, **parameters}
    whole = server.post("/v1/chat/completions", body)
    assert whole.status_code == 200, whole.text
    with server.stream("/v1/chat/completions", body | {"stream_options": {"include_usage": True}}) as payloads:
        streamed = folding.of_chat_chunks(chunks_of(payloads))
    assert folding.same(without_identity(streamed), without_identity(folding.of_chat_response(whole.json())))


@pytest.mark.parametrize("parameters", COMPLETIONS, ids=str)
def test_folding_the_stream_of_a_completion_gives_the_response(
    server: RunningServer, parameters: dict[str, Any]
) -> None:
    body = {"model": "demo", "prompt": "Once upon a time", "temperature": 0, "seed": 4, **parameters}
    whole = server.post("/v1/completions", body)
    assert whole.status_code == 200, whole.text
    with server.stream("/v1/completions", body | {"stream_options": {"include_usage": True}}) as payloads:
        streamed = folding.of_completion_chunks(chunks_of(payloads))
    assert folding.same(without_identity(streamed), without_identity(folding.of_completion_response(whole.json())))


@pytest.mark.parametrize("parameters", MESSAGES, ids=str)
def test_folding_the_stream_of_a_message_gives_the_response(server: RunningServer, parameters: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "Tell me a story with 😀 and 時."}]
    body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 40, **parameters}
    whole, streamed = (server.post("/v1/messages", body | {"stream": stream}) for stream in (False, True))
    assert (whole.status_code, streamed.status_code) == (200, 200), whole.text
    assert same_message(folding.of_message_events(streamed.text), whole.json())


def same_message(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """But for ids, and for what the prefix cache had."""
    for message in (one, other):
        usage = message.pop("usage")
        message["usage"] = [usage.pop("output_tokens"), usage.pop("output_tokens_details")]
        message["prompt"] = sum(count for name, count in usage.items() if name.endswith("input_tokens"))
        assert message.pop("id").startswith("msg_")
        for block in message["content"]:
            assert block.pop("id", "toolu_").startswith("toolu_")
    return one == other


@pytest.mark.parametrize("parameters", RESPONSES, ids=str)
def test_folding_the_stream_of_a_response_gives_the_response(server: RunningServer, parameters: dict[str, Any]) -> None:
    """Of the stream, whose last event has it whole, the items are checked to be what its other events add up to."""
    body = {
        "model": "demo",
        "input": "Tell me a story with 😀 and 時.",
        "temperature": 0,
        "max_output_tokens": 40,
        **parameters,
    }
    whole, streamed = (server.post("/v1/responses", body | {"stream": stream}) for stream in (False, True))
    assert (whole.status_code, streamed.status_code) == (200, 200), whole.text
    one, other = folding.of_response_events(streamed.text), whole.json()
    assert folding.same(response_without_identity(one), response_without_identity(other))


def response_without_identity(response: dict[str, Any]) -> dict[str, Any]:
    """Nor with what the prefix cache had."""
    serial = response.pop("id").removeprefix("resp_")
    for item in response["output"]:
        assert serial in item.pop("id")
        item.pop("call_id", None)
    usage = {**response["usage"], "input_tokens_details": None}
    return {**response, "created_at": None, "completed_at": None, "usage": usage}
