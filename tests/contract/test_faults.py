"""Every parameter of both endpoints given wrongly, over HTTP: the right status, and `param` names the field."""

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mlx_manager.mlx_server.schemas import openai
from tests.running_server import HANG_SECONDS, RunningServer

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "babbler", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    "/v1/completions": {"model": "babbler", "prompt": "Hi", "max_tokens": 1},
}
CHAT, COMPLETIONS = BODIES
BOTH = tuple(BODIES)
Fault = tuple[str, dict[str, Any], int, str]

NUMBERS: list[tuple[str, tuple[str, ...], list[float]]] = [
    ("temperature", BOTH, [-0.01, 2.01]),
    ("top_p", BOTH, [-0.1, -1, 1.01]),
    ("top_k", BOTH, [-2, 1.5]),
    ("min_p", BOTH, [-0.1, 1.1]),
    ("repetition_penalty", BOTH, [0, 2.1]),
    ("repeat_penalty", BOTH, [0, 2.1]),
    ("frequency_penalty", BOTH, [-2.1, 2.1]),
    ("presence_penalty", BOTH, [-2.1, 2.1]),
    ("seed", BOTH, [2**63, -(2**63) - 1, 1.5]),
    ("n", BOTH, [0, -1, 129, 1.5]),
    ("max_tokens", BOTH, [-2, 2**31, 1.5]),
    ("max_completion_tokens", (CHAT,), [0, -2, 2**31, 1.5]),
    ("num_predict", BOTH, [0, -2, 2**31, 1.5]),
    ("min_tokens", BOTH, [-1, 2**31, 1.5]),
    ("top_logprobs", (CHAT,), [-1, 21, 1.5]),
    ("logprobs", (COMPLETIONS,), [-1, 6, 1.5]),
    ("best_of", (COMPLETIONS,), [0, 129, 1.5]),
    ("thinking_budget", (CHAT,), [-1, 2**31, 1.5]),
]
SWITCHES: list[tuple[str, tuple[str, ...]]] = [
    ("stream", BOTH),
    ("ignore_eos", BOTH),
    ("include_stop_str_in_output", BOTH),
    ("skip_special_tokens", BOTH),
    ("logprobs", (CHAT,)),
    ("add_generation_prompt", (CHAT,)),
    ("continue_final_message", (CHAT,)),
    ("echo", (COMPLETIONS,)),
    ("enable_thinking", (CHAT,)),
    ("parallel_tool_calls", (CHAT,)),
]


def each(status: int, param: str, *values: object) -> list[tuple[object, int, str]]:
    return [(value, status, param) for value in values]


NO_SWITCH: list[object] = [1, 0, "true", [], {}]
NO_TEXT: list[object] = [1, True, {}, "\ud800"]
SCHEMA_AT = "response_format.json_schema.schema"
FUNCTION_AT = "tools[0].function"


def json_schema(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def tool(**function: object) -> list[object]:
    return [{"type": "function", "function": {"name": "f", **function}}]


OTHERS: list[tuple[str, tuple[str, ...], list[tuple[object, int, str]]]] = [
    ("model", BOTH, each(422, "model", None, "", 1, [], {})),
    ("prompt_cache_retention", BOTH, each(422, "prompt_cache_retention", "", "for ever", 1, [], {})),
    ("model", BOTH, [("nobody", 404, "model")]),
    ("stop", BOTH, each(422, "stop", 1, True, {}, "\ud800", ["a"] * 33, ["a"] * 10**5)),
    ("stop", BOTH, [(["a", 1], 422, "stop[1]"), (["a", None], 422, "stop[1]")]),
    ("stop_token_ids", BOTH, each(422, "stop_token_ids", 1, "1", {}, [1] * 10**5)),
    ("stop_token_ids", BOTH, [([1, "1"], 422, "stop_token_ids[1]"), ([math.nan], 422, "stop_token_ids[0]")]),
    ("stop_token_ids", BOTH, each(400, "stop_token_ids", [2048], [-1], [2**40])),
    ("logit_bias", BOTH, each(422, "logit_bias", 1, "1", [], {str(i): 1 for i in range(2000)})),
    ("logit_bias", BOTH, [({"a": 1}, 422, "logit_bias.a"), ({"2048": 1}, 400, "logit_bias")]),
    ("logit_bias", BOTH, [({"1": bias}, 422, "logit_bias") for bias in (101, "1", True, None, math.nan)]),
    ("top_k", BOTH, [(2049, 400, "top_k")]),
    ("min_tokens", BOTH, [(2, 400, "min_tokens")]),
    ("keep_alive", BOTH, each(422, "keep_alive", "", "soon", "1d", "\ud800", True, [], {}, 1e300, 10**400, math.nan)),
    ("stream_options", BOTH, each(422, "stream_options", 1, "x", [])),
    ("stream_options", BOTH, [({"include_usage": 1}, 422, "stream_options.include_usage")]),
    ("stream_options", BOTH, [({"include_usage": True}, 400, "stream_options")]),
    ("guided_json", BOTH, each(422, "guided_json", 1, True, [], "\ud800")),
    ("guided_json", BOTH, each(400, "guided_json", "{", "5", {"type": "king"}, {"type": 5}, {"enum": []})),
    ("guided_regex", BOTH, each(422, "guided_regex", 1, [], {}, "\ud800")),
    ("guided_regex", BOTH, each(400, "guided_regex", "(", "[")),
    ("guided_choice", BOTH, each(422, "guided_choice", "a", 1, {}, [])),
    ("guided_choice", BOTH, [(["a", 1], 422, "guided_choice[1]")]),
    ("guided_grammar", BOTH, [*each(422, "guided_grammar", 1, [], {}), *each(400, "guided_grammar", "", "x: 1")]),
    ("response_format", (CHAT,), each(422, "response_format", 1, "text", [])),
    ("response_format", (CHAT,), [({}, 422, "response_format.type"), ({"type": "xml"}, 400, "response_format.type")]),
    ("response_format", (CHAT,), [({"type": "json_schema"}, 400, "response_format.json_schema")]),
    ("response_format", (CHAT,), [(json_schema(1), 422, SCHEMA_AT), (json_schema([]), 422, SCHEMA_AT)]),
    (
        "response_format",
        (CHAT,),
        [(json_schema({"type": 1}), 400, SCHEMA_AT), (json_schema({"enum": []}), 400, SCHEMA_AT)],
    ),
    ("response_format", (COMPLETIONS,), each(400, "response_format", {"type": "json_object"})),
    ("tools", (CHAT,), [*each(422, "tools", 1, "f", {}), ([1], 422, "tools[0]"), ([{}], 422, "tools[0].type")]),
    ("tools", (CHAT,), [([{"type": "function"}], 400, FUNCTION_AT), ([{"type": "custom"}], 400, "tools[0].type")]),
    ("tools", (CHAT,), [(tool(name=name), 422, f"{FUNCTION_AT}.name") for name in ("", 'a"b', "a b", "a" * 129)]),
    ("tools", (CHAT,), [(tool(parameters=[]), 422, f"{FUNCTION_AT}.parameters")]),
    ("tools", (CHAT,), [(tool(parameters={"type": "array"}), 400, f"{FUNCTION_AT}.parameters")]),
    ("tools", (CHAT,), [(tool(parameters={"properties": []}), 400, f"{FUNCTION_AT}.parameters.properties")]),
    ("tools", (CHAT,), [(tool(parameters={"properties": {"\ud800": {}}}), 400, "messages")]),
    ("tools", (CHAT,), [(tool(parameters={"required": "a"}), 400, f"{FUNCTION_AT}.parameters.required")]),
    ("tools", (CHAT,), [([*tool(), *tool()], 400, "tools[1].function.name"), ([*tool()] * 2000, 400, "tools")]),
    ("tool_choice", (CHAT,), [*each(422, "tool_choice", 1, "f", []), ({}, 422, "tool_choice.type")]),
    ("tool_choice", (CHAT,), [("required", 400, "tool_choice"), ({"type": "x"}, 400, "tool_choice.type")]),
    ("tool_choice", (CHAT,), [({"type": "function", "function": {"name": "f"}}, 400, "tool_choice")]),
    ("tool_choice", (CHAT,), [({"type": "function"}, 400, "tool_choice.function")]),
    ("messages", (CHAT,), each(422, "messages", None, [], "Hi", {}, 1)),
    ("messages", (CHAT,), [([1], 422, "messages[0]"), ([{}] * 10**5, 400, "messages")]),
    ("messages", (CHAT,), [([{"role": "king", "content": "Hi"}], 422, "messages[0].role")]),
    ("messages", (CHAT,), [([{"role": "user", "content": value}], 422, "messages[0].content") for value in NO_TEXT]),
    ("messages", (CHAT,), [([{"role": "user", "content": value}], 400, "messages[0].content") for value in (None,)]),
    ("messages", (CHAT,), [([{"role": "user", "content": [{}]}], 422, "messages[0].content[0].type")]),
    (
        "messages",
        (CHAT,),
        [
            ([{"role": "user", "content": [{"type": kind, kind: {}}]}], 400, "messages[0].content[0]")
            for kind in ("image_url", "input_audio", "file", "hologram")
        ],
    ),
    (
        "messages",
        (CHAT,),
        [
            ([{"role": "assistant", "tool_calls": [{"id": 1}]}], 422, "messages[0].tool_calls[0].id"),
            ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], 400, "messages[0].tool_calls[0].function"),
            ([{"role": "user", "content": "Hi", "name": 1}], 422, "messages[0].name"),
        ],
    ),
    ("max_tokens", (CHAT,), [(0, 422, "max_tokens")]),
    ("max_completion_tokens", (CHAT,), [(2, 400, "max_completion_tokens")]),
    ("top_logprobs", (CHAT,), [(1, 400, "top_logprobs")]),
    ("reasoning_effort", (CHAT,), each(422, "reasoning_effort", 1, "", "huge", [])),
    ("chat_template_kwargs", (CHAT,), each(422, "chat_template_kwargs", 1, "x", [])),
    ("chat_template_kwargs", (CHAT,), [({"tokenize": True}, 400, "chat_template_kwargs.tokenize")]),
    ("prompt", (COMPLETIONS,), each(422, "prompt", None, 1, True, {}, [], "\ud800", ["a"] * 2000)),
    ("prompt", (COMPLETIONS,), [(["a", 1], 422, "prompt[1]"), ([1, "a"], 422, "prompt[1]")]),
    (
        "prompt",
        (COMPLETIONS,),
        [([True], 422, "prompt[0]"), ([1.5], 422, "prompt[0]"), ([[1], ["a"]], 422, "prompt[1][0]")],
    ),
    ("prompt", (COMPLETIONS,), [([1] * 10**5 + ["a"] * 10**5, 422, "prompt[100000]")]),
    ("prompt", (COMPLETIONS,), each(400, "prompt", [2048], [-1], [[1], [2**70]], [[]], [1] * 9000)),
    ("max_tokens", (COMPLETIONS,), [(0, 400, "max_tokens")]),
    ("suffix", (COMPLETIONS,), [(1, 422, "suffix"), ("end", 400, "suffix")]),
    ("top_logprobs", (COMPLETIONS,), [(1, 400, "top_logprobs")]),
    ("max_completion_tokens", (COMPLETIONS,), [(1, 400, "max_completion_tokens")]),
]


def faults() -> Iterator[Fault]:
    for name, paths, out_of_range in NUMBERS:
        wrong = [*out_of_range, "1", True, [1], {}, math.nan, math.inf, -math.inf]
        yield from ((path, {name: value}, 422, name) for path in paths for value in wrong)
    for name, paths in SWITCHES:
        yield from ((path, {name: value}, 422, name) for path in paths for value in NO_SWITCH)
    for name, paths, rows in OTHERS:
        yield from ((path, {name: value}, status, param) for path in paths for value, status, param in rows)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=HANG_SECONDS) as client:
        yield client


def post(client: httpx.Client, path: str, fields: dict[str, Any]) -> httpx.Response:
    content = json.dumps({**BODIES[path], **fields})
    return client.post(path, content=content, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(("path", "fields", "status", "param"), list(faults()), ids=lambda value: repr(value)[:60])
def test_a_fault_is_refused_with_its_status_and_its_field(
    client: httpx.Client, path: str, fields: dict[str, Any], status: int, param: str
) -> None:
    response = post(client, path, fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert error["message"]


@pytest.mark.parametrize("path", BOTH)
def test_null_is_as_good_as_leaving_a_field_out(client: httpx.Client, path: str) -> None:
    body = openai.ChatCompletionRequest if path == CHAT else openai.CompletionRequest
    optional = [name for name, field in body.model_fields.items() if not field.is_required()]
    response = post(client, path, {name: None for name in optional if name != "max_tokens"})
    assert response.status_code == 200, response.text


def test_every_parameter_of_both_endpoints_is_given_wrongly_here() -> None:
    tried = {(path, name) for path, fields, _, _ in faults() for name in fields}
    bodies = ((CHAT, openai.ChatCompletionRequest), (COMPLETIONS, openai.CompletionRequest))
    assert {(path, name) for path, body in bodies for name in body.model_fields} - tried == set()
