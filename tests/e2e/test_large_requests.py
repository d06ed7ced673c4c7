"""Requests that hold too much: refused at once, with the field named, while others are served."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running_server import RunningServer, running_server

HI = {"role": "user", "content": "Hi"}


def tool(number: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"tool_{number}", "description": "x" * 100, "parameters": {}}}


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOO_LARGE: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("messages", CHAT, {"messages": [HI] * 50_000}, "50000", "10000"),
    ("tools", CHAT, {"messages": [HI], "tools": [tool(n) for n in range(5000)]}, "5000", "1024"),
    ("messages", CHAT, {"messages": [{"role": "user", "content": "a " * 2_100_000}]}, "4200000", "4000000"),
    ("messages", CHAT, {"messages": [{**HI, "reasoning": "a " * 2_100_000}]}, "4200002", "4000000"),
    ("prompt", COMPLETIONS, {"prompt": "a " * 2_100_000}, "4200000", "4000000"),
    ("prompt", COMPLETIONS, {"prompt": ["a " * 1_050_000] * 2}, "4200000", "4000000"),
    ("prompt", COMPLETIONS, {"prompt": [5] * 1_000_001}, "4000004", "4000000"),
    ("prompt", COMPLETIONS, {"prompt": [[5] * 500_001] * 2}, "4000008", "4000000"),
]


@pytest.mark.parametrize(
    ("field", "path", "body", "count", "limit"),
    TOO_LARGE,
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_too_much_is_refused_with_the_numbers(
    server: RunningServer, field: str, path: str, body: dict[str, Any], count: str, limit: str
) -> None:
    answer = server.post(path, {"model": "demo", **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, field, "invalid_request")
    assert count in error["message"]
    assert limit in error["message"]


def test_refusals_and_long_prompts_hold_up_no_stream(server: RunningServer) -> None:
    """A prompt as long as one may be is tokenised, and then is too long for the model's context."""
    gaps_seconds: list[float] = []
    enough = threading.Event()

    def listen() -> None:
        body = {"model": "babbler", "prompt": "x", "max_tokens": 8000, "temperature": 0}
        while not enough.is_set():
            last = time.monotonic()
            with server.stream(COMPLETIONS, body) as payloads:
                for _ in payloads:
                    gaps_seconds.append(time.monotonic() - last)
                    last = time.monotonic()
                    if enough.is_set():
                        break

    server.post(COMPLETIONS, {"model": "babbler", "prompt": "x", "max_tokens": 1})
    listener = threading.Thread(target=listen)
    listener.start()
    try:
        for _, path, body, _, _ in TOO_LARGE:
            assert server.post(path, {"model": "demo", **body}).status_code == 400
        for field, path, body in (
            ("messages", CHAT, {"messages": [{"role": "user", "content": "ab " * 1_333_000}]}),
            ("prompt", COMPLETIONS, {"prompt": "ab " * 1_333_000}),
            ("prompt", COMPLETIONS, {"prompt": [5] * 1_000_000}),
        ):
            error = server.post(path, {"model": "demo", **body}).json()["error"]
            assert (error["param"], error["code"]) == (field, "context_length_exceeded")
    finally:
        enough.set()
        listener.join()
    assert len(gaps_seconds) > 100
    assert max(gaps_seconds) < 2


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, babbler: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("strict")
    with running_server(folder, bounds={"max_messages": 2, "max_tools": 1, "max_prompt_characters": 100}) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "field", "most", "more"),
    [
        (CHAT, "messages", {"messages": [HI] * 2}, {"messages": [HI] * 3}),
        (CHAT, "tools", {"messages": [HI], "tools": [tool(1)][:0]}, {"messages": [HI], "tools": [tool(1), tool(2)]}),
        (COMPLETIONS, "prompt", {"prompt": "a" * 100}, {"prompt": "a" * 101}),
        (COMPLETIONS, "prompt", {"prompt": [5] * 25}, {"prompt": [5] * 26}),
        (COMPLETIONS, "prompt", {"prompt": ["a" * 50] * 2}, {"prompt": ["a" * 50, "a" * 51]}),
        (COMPLETIONS, "prompt", {"prompt": [[5] * 12] * 2}, {"prompt": [[5] * 12, [5] * 14]}),
    ],
)
def test_a_bound_is_where_the_limit_lies(
    strict: RunningServer, path: str, field: str, most: dict[str, Any], more: dict[str, Any]
) -> None:
    asked = {"model": "demo", "max_tokens": 1}
    error = strict.post(path, asked | more).json()["error"]
    assert error["param"] == field
    answer = strict.post(path, asked | most)
    assert answer.status_code == 200 or "chat template, has" in answer.json()["error"]["message"]


def test_what_the_template_adds_counts_too(strict: RunningServer) -> None:
    answer = strict.post(CHAT, {"model": "demo", "messages": [{"role": "user", "content": "a" * 99}]})
    assert answer.status_code == 400
    assert "The prompt, as rendered by the model's chat template, has" in answer.json()["error"]["message"]
