"""Requests that agents were recorded to send, to the running server: every field they send is taken.

`tests/agent_requests` holds them with their prose replaced, and each names its client.
"""

import json
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


def test_claude_code_behind_litellm_is_answered(server: RunningServer) -> None:
    assert "data: [DONE]" in send(server, "litellm_chat_reasoning", max_tokens=24).text


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
