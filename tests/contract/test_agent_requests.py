"""Requests that agents were recorded to send, to the running server: every field they send is taken.

`tests/agent_requests` holds them with their prose replaced, and each names its client.
"""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic.types import Message, MessageTokensCount
from openai.types.responses import Response

from mlx_manager.mlx_server.protocols.base import ParseOptions
from mlx_manager.mlx_server.protocols.responses import Responses
from mlx_manager.mlx_server.schemas.responses import ResponsesRequest
from tests import folding
from tests.running_server import HANG_SECONDS, RunningServer

FOLDER = Path(__file__).parents[1] / "agent_requests"
REQUESTS = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(FOLDER.glob("*.json"))}
RESPONSES = [name for name, request in REQUESTS.items() if request["path"] == "/v1/responses"]
CHATS = [name for name, request in REQUESTS.items() if request["path"] == "/v1/chat/completions"]
COMPLETIONS = [name for name, request in REQUESTS.items() if request["path"] == "/v1/completions"]
EMBEDDINGS = [name for name, request in REQUESTS.items() if request["path"] == "/v1/embeddings"]
REFUSED = {"openwebui_chat_params": "mirostat"}
"""By the parameter that this server does not have."""
MESSAGES = [name for name, request in REQUESTS.items() if request["path"].split("?")[0] == "/v1/messages"]


def send(server: RunningServer, name: str, **changes: Any) -> httpx.Response:
    request = REQUESTS[name]
    body = {**request["body"], "model": "demo", **changes} if request["body"] is not None else None
    headers = {field: value for field, value in request["headers"].items() if field.lower() != "content-type"}
    response = httpx.request(
        request["method"], f"{server.url}{request['path']}", json=body, headers=headers, timeout=HANG_SECONDS
    )
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_of_agents_are_answered_whole(server: RunningServer, name: str) -> None:
    message = Message.model_validate(send(server, name, stream=False, max_tokens=24).json(), strict=False)
    assert message.content
    assert message.stop_reason in ("end_turn", "max_tokens", "tool_use")


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_of_agents_are_answered_by_a_stream(server: RunningServer, name: str) -> None:
    message = folding.of_message_events(send(server, name, stream=True, max_tokens=24).text)
    assert message["content"]
    assert message["stop_reason"] in ("end_turn", "max_tokens", "tool_use")


def test_the_limits_that_agents_send_are_cut_to_the_context(server: RunningServer) -> None:
    """`babbler` does not end its turn before its context is full."""
    name = "claude_messages_known_model_system_turns"
    assert REQUESTS[name]["body"]["max_tokens"] > 8192
    message = folding.of_message_events(send(server, name, model="babbler", temperature=0).text)
    assert message["stop_reason"] == "model_context_window_exceeded"


def test_tokens_are_counted_for_claude_code(server: RunningServer) -> None:
    assert MessageTokensCount.model_validate(send(server, "claude_count_tokens").json()).input_tokens > 0


def test_claude_code_finds_the_server_and_its_models(server: RunningServer) -> None:
    assert send(server, "claude_head_hello").content == b""
    models = send(server, "claude_models").json()
    assert (models["object"], models["has_more"], models["first_id"]) == ("list", False, models["data"][0]["id"])
    assert {(model["object"], model["type"]) for model in models["data"]} == {("model", "model")}


@pytest.mark.parametrize("name", [*CHATS, *COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
def test_chats_and_completions_of_agents_are_answered(server: RunningServer, name: str, stream: bool) -> None:
    body = {**REQUESTS[name]["body"], "model": "demo", "stream": stream}
    body["max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"] = 24
    answer = server.post(REQUESTS[name]["path"], body if stream else without(body, "stream_options"))
    if name in REFUSED:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, REFUSED[name])
        body = without(body, REFUSED[name])
        answer = server.post(REQUESTS[name]["path"], body if stream else without(body, "stream_options"))
    assert answer.status_code == 200, answer.text
    (reason,) = finish_reasons(answer, stream)
    assert reason in ("stop", "length", "tool_calls")


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


def finish_reasons(answer: httpx.Response, stream: bool) -> list[str]:
    """Of the one choice: a whole stream has one, and ends with [DONE]."""
    if not stream:
        return [choice["finish_reason"] for choice in answer.json()["choices"]]
    payloads = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert payloads[-1] == "[DONE]"
    choices = (choice for payload in payloads[:-1] for choice in json.loads(payload)["choices"])
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]


def test_every_recorded_request_is_answered_by_a_test() -> None:
    """Those for embeddings by `test_openai_embeddings.py`."""
    others = {"claude_count_tokens", "claude_head_hello", "claude_models", "codex_oss_models"}
    answered = {*CHATS, *COMPLETIONS, *EMBEDDINGS, *MESSAGES, *RESPONSES} | others
    assert (len(REQUESTS), answered) == (74, set(REQUESTS))


def test_a_model_tells_its_context_under_each_name_that_clients_read(server: RunningServer) -> None:
    loaded, *_ = models = send(server, "claude_models").json()["data"]
    assert loaded["loaded"]
    assert sorted(models, key=lambda model: not model["loaded"]) == models
    (demo,) = (model for model in models if model["id"] == "demo")
    names = ("context_length", "context_window", "max_model_len", "max_input_tokens", "max_tokens", "max_output_tokens")
    assert {name: demo[name] for name in names} == dict.fromkeys(names, 8192)
    assert demo["meta"] == {"n_ctx": 8192}
    assert {name: demo["capabilities"][name] for name in ("chat", "tools", "reasoning", "structured_output")} == {
        "chat": True,
        "tools": "native",
        "reasoning": True,
        "structured_output": True,
    }
    (short,) = (model for model in models if model["id"] == "short")
    assert (short["max_model_len"], short["capabilities"]["tools"]) == (32, False)


LONG = "word " * 9000


def tokens_read(usage: dict[str, int]) -> int:
    """The whole prompt, of which Anthropic counts three parts."""
    return usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]


def test_chat_clients_recognise_an_overflow_of_the_context(server: RunningServer) -> None:
    answer = server.post("/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": LONG}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 8192 tokens" in error["message"]


def test_codex_recognises_an_overflow_of_the_context(server: RunningServer) -> None:
    answer = server.post("/v1/responses", {"model": "demo", "input": LONG, "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_claude_code_recognises_an_overflow_of_the_context(server: RunningServer) -> None:
    body = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": LONG}]}
    answer = server.post("/v1/messages", body)
    assert answer.status_code == 400
    assert re.match(r"prompt is too long: \d+ tokens > 8192 maximum", answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("path", "limit", "prompt"),
    [
        ("/v1/chat/completions", "max_tokens", {"messages": [{"role": "user", "content": "Count to 5"}]}),
        ("/v1/completions", "max_tokens", {"prompt": "Count to 5", "stop": "\n"}),
        ("/v1/responses", "max_output_tokens", {"input": "Count to 5"}),
        ("/v1/messages", "max_tokens", {"messages": [{"role": "user", "content": "Count to 5"}]}),
    ],
)
def test_a_limit_above_what_the_context_has_left_is_cut_and_not_refused(
    server: RunningServer, path: str, limit: str, prompt: dict[str, Any]
) -> None:
    answer = server.post(path, {"model": "demo", "temperature": 0, limit: 64_000, **prompt})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("stream", [False, True])
def test_responses_of_agents_are_answered_but_for_those_with_a_users_image(
    server: RunningServer, name: str, stream: bool
) -> None:
    body = {**REQUESTS[name]["body"], "model": "demo", "stream": stream, "max_output_tokens": 24}
    answer = server.post("/v1/responses", body)
    if name == "codex_responses_input_image":
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[3].content[1].type")
        return
    assert answer.status_code == 200, answer.text
    response = folding.of_response_events(answer.text) if stream else answer.json()
    assert response["status"] in ("completed", "incomplete")
    assert Response.model_validate(response).output


def test_no_field_that_agents_send_is_unknown() -> None:
    for name in RESPONSES:
        body = ResponsesRequest.model_validate(REQUESTS[name]["body"])
        if name != "codex_responses_input_image":
            Responses().parse(body, ParseOptions(reject_unknown=True))


def test_codex_finds_the_models(server: RunningServer) -> None:
    models = send(server, "codex_oss_models").json()
    assert "demo" in [model["id"] for model in models["data"]]
    assert "demo" in [model["slug"] for model in models["models"]]


def test_a_second_turn_of_claude_code_reads_only_what_is_new(server: RunningServer) -> None:
    body = REQUESTS["claude_messages_create"]["body"]
    body = {**body, "model": "demo", "stream": False, "max_tokens": 24, "temperature": 0}
    body["system"] = [*body["system"], {"type": "text", "text": "This text is of this test alone."}]
    first = server.post("/v1/messages", body).json()
    turn = [{"role": "assistant", "content": first["content"]}, {"role": "user", "content": "And now?"}]
    second = server.post("/v1/messages", {**body, "messages": [*body["messages"], *turn]}).json()
    read = tokens_read(first["usage"])
    assert read > 150
    assert second["usage"]["cache_read_input_tokens"] >= read


def test_a_second_turn_of_codex_reads_only_what_is_new(server: RunningServer) -> None:
    body = REQUESTS["codex_responses_create"]["body"]
    body = {**body, "model": "demo", "stream": False, "max_output_tokens": 24, "temperature": 0}
    said = {"type": "message", "role": "developer", "content": "This text is of this test alone."}
    body["input"] = [said, *body["input"]]
    first = server.post("/v1/responses", body).json()
    turn = [*first["output"], {"type": "message", "role": "user", "content": "And now?"}]
    second = server.post("/v1/responses", {**body, "input": [*body["input"], *turn]}).json()
    cached = second["usage"]["input_tokens_details"]["cached_tokens"]
    assert first["usage"]["input_tokens"] > 150
    assert cached >= first["usage"]["input_tokens"]
