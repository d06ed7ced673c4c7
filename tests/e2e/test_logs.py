"""What a server writes into its log, of what clients do to it: one line a request, and never what was said."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running_server import HANG_SECONDS, RunningServer, chunks_of, eventually, running_server

CHAT = "/v1/chat/completions"
MARKER = "xylophone-7351"
Line = dict[str, Any]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, babbler: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("logged")
    with running_server(folder, log_format="json", available_models=babbler, admin_key="secret") as server:
        yield server


def lines(server: RunningServer) -> list[Line]:
    """Every line is an object: nothing else writes into the log."""
    return [json.loads(line) for line in server.log.read_text("utf-8").splitlines()]


def access_line(server: RunningServer, request_id: str) -> Line:
    """The request's only line, which it gets when it has ended."""

    def found() -> list[Line]:
        asked = (line for line in lines(server) if line["logger"] == "mlx_manager.access")
        return [line for line in asked if line["request_id"] == request_id]

    (line,) = eventually(found, lambda those: len(those) > 0, seconds=10)
    return line


def ask(server: RunningServer, request_id: str, path: str = CHAT, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, headers={"x-request-id": request_id}, timeout=HANG_SECONDS)


def test_a_request_has_one_line_with_its_numbers(logged: RunningServer) -> None:
    message = [{"role": "user", "content": "Count to 5"}]
    answer = ask(logged, "counting", model="demo", messages=message, temperature=0).json()
    line = access_line(logged, "counting")
    usage = answer["usage"]
    assert (line["status"], line["method"], line["path"], line["endpoint"]) == (200, "POST", CHAT, CHAT)
    assert (line["model"], line["finish_reason"], line["response_id"]) == ("demo", "stop", answer["id"])
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert line["completion_tokens"] == usage["completion_tokens"]
    assert 0 < line["time_to_first_token_seconds"] < line["seconds"]
    assert line["message"].startswith(f"200 POST {CHAT} ")
    assert f" demo prompt={usage['prompt_tokens']} " in line["message"]


def test_a_load_that_a_request_waits_for_is_told_with_its_id(logged: RunningServer) -> None:
    ask(logged, "waiting", "/v1/completions", model="babbler", prompt="x", max_tokens=1)
    assert access_line(logged, "waiting")["load_seconds"] > 0
    assert "Loading model: babbler" in [
        line["message"] for line in lines(logged) if line.get("request_id") == "waiting"
    ]


def test_a_stream_that_fails_tells_with_what(logged: RunningServer) -> None:
    ask(logged, "first", "/v1/completions", model="babbler", prompt="x", max_tokens=1)
    body = {"model": "babbler", "prompt": "x", "temperature": 0, "max_tokens": 4000, "stream": True}
    headers = {"x-request-id": "failing"}
    with httpx.stream(
        "POST", f"{logged.url}/v1/completions", json=body, headers=headers, timeout=HANG_SECONDS
    ) as response:
        received = response.iter_lines()
        next(received)
        for worker in logged.workers():
            worker.kill()
        assert "engine_failed" in "".join(received)
    line = access_line(logged, "failing")
    assert (line["status"], line["error"]) == (200, "EngineFailed")


def test_nothing_that_was_said_and_no_key_is_in_the_log(logged: RunningServer, server: RunningServer) -> None:
    """In JSON, and in the log of the server that tests of all kinds have had at work."""
    for each in (logged, server):
        said = [{"role": "user", "content": f"Repeat: {MARKER}"}]
        answer = each.chat(f"Repeat: {MARKER}", stop=[f"{MARKER}!"], user=MARKER)
        assert answer["choices"][0]["message"]["content"]
        with each.stream(CHAT, {"model": "demo", "messages": said}) as payloads:
            chunks_of(payloads)
        each.post("/v1/completions", {"model": "demo", "prompt": MARKER, "max_tokens": 3})
        for bad in (
            {"messages": MARKER},
            {"messages": said, "temperature": MARKER},
            {"messages": said, "response_format": {"type": "json_schema", "json_schema": MARKER}},
            {"messages": said, "guided_regex": f"({MARKER}"},
            {"messages": said, "guided_grammar": f"start: {MARKER}"},
            {"messages": said, "tool_choice": {"type": "function", "function": {"name": MARKER}}},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": MARKER}}]}]},
        ):
            assert 400 <= each.post(CHAT, {"model": "demo", **bad}).status_code < 500, bad
        httpx.post(f"{each.url}{CHAT}", content=f'{{"model": "{MARKER}', headers={"content-type": "application/json"})
        headers = {
            "Authorization": f"Bearer {MARKER}",
            "Cookie": MARKER,
            "User-Agent": MARKER,
            "x-request-id": f"{MARKER}?",
        }
        httpx.get(f"{each.url}/admin/pool?key={MARKER}", headers=headers)
        httpx.get(f"{each.url}/v1/models?{MARKER}", headers=headers)
        each.wait_for_log("GET  /v1/models ")
        assert MARKER not in each.log.read_text()


def test_a_path_cannot_forge_lines_nor_reach_the_terminal(server: RunningServer) -> None:
    httpx.get(f"{server.url}/evil%0A2026-01-01%20forged%1B[31m")
    server.wait_for_log("404 GET  /evil%0A2026-01-01%20forged%1B%5B31m ")


def test_machines_that_ask_are_not_told_of(logged: RunningServer) -> None:
    for path in ("/health", "/ready", "/metrics"):
        httpx.get(f"{logged.url}{path}", headers={"x-request-id": "machine"})
    ask(logged, "after-them", path="/nowhere")
    access_line(logged, "after-them")
    assert not [line for line in lines(logged) if line.get("request_id") == "machine"]


def test_lines_are_in_order_and_in_utc(logged: RunningServer) -> None:
    stamps = [line["timestamp"] for line in lines(logged)]
    assert stamps == sorted(stamps)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", stamp) for stamp in stamps)
