"""Chats as agents and libraries send them, recorded with neutral texts: the demo model answers each."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.running_server import RunningServer, chunks_of

CHATS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "client_chats.json").read_text("utf-8"))


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_that_a_client_sends_is_answered(server: RunningServer, name: str) -> None:
    body = CHATS[name]["body"]
    limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    body = {**body, limit: 24}
    if body.get("stream"):
        with server.stream("/v1/chat/completions", body) as payloads:
            chunks = chunks_of(payloads)
        ended = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
        assert len(ended) == 1
    else:
        answer = server.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["finish_reason"]
