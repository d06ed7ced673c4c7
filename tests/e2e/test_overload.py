"""More requests than can run, and requests that take too long."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.running_server import RunningServer, eventually, running_server

SHORT = {"model": "babbler", "prompt": "x", "temperature": 0, "max_tokens": 4}
LONG = SHORT | {"max_tokens": 8000}
MAX_ADMITTED = 64 + 256

pytestmark = pytest.mark.anyio


async def test_two_hundred_at_once_are_all_answered(server: RunningServer) -> None:
    answers = await asyncio.gather(*(post(server, SHORT) for _ in range(200)))
    assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [4] * 200


async def test_beyond_the_queue_clients_are_told_to_come_back_and_the_others_are_answered(
    tmp_path: Path, babbler: Path
) -> None:
    """The worker is stopped until all the refusals are out: nobody is done before the last one is there."""
    with running_server(tmp_path, default_model=babbler) as server:
        api, worker = psutil.Process(server.process.pid), server.worker()
        before, memory_before = server.holdings(), api.memory_info().rss
        worker.suspend()
        requests = [asyncio.create_task(post(server, SHORT)) for _ in range(600)]
        refused = 600 - MAX_ADMITTED
        await asyncio.to_thread(eventually, lambda: sum(map(asyncio.Task.done, requests)), lambda n: n >= refused)
        worker.resume()
        answers = await asyncio.gather(*requests)
        assert Counter(answer.status_code for answer in answers) == {200: MAX_ADMITTED, 429: refused}
        refusals = [answer for answer in answers if answer.status_code == 429]
        assert {refusal.headers["retry-after"] for refusal in refusals} == {"1"}
        assert {refusal.json()["error"]["code"] for refusal in refusals} == {"server_busy"}
        assert api.memory_info().rss - memory_before < 100 * 2**20
        assert server.post("/v1/completions", SHORT).status_code == 200
        await asyncio.to_thread(server.wait_until_nothing_is_left_of_it, before)


async def test_requests_that_wait_for_a_load_count_as_well(tmp_path: Path, babbler: Path) -> None:
    with running_server(tmp_path, available_models=babbler, max_queue=0) as server:
        answers = await asyncio.gather(*(post(server, SHORT) for _ in range(100)))
        assert Counter(answer.status_code for answer in answers) == {200: 64, 429: 36}


def test_request_beyond_its_deadline_is_a_504_or_ends_its_stream_with_the_error(tmp_path: Path, babbler: Path) -> None:
    with running_server(tmp_path, default_model=babbler, request_timeout_seconds=0.5) as server:
        before = server.holdings()
        response = server.post("/v1/completions", LONG)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
        assert "0.5 s" in response.json()["error"]["message"]
        with server.stream("/v1/completions", LONG) as payloads:
            *chunks, last = list(payloads)
        assert json.loads(last)["error"]["code"] == "request_timeout"
        assert chunks
        server.worker().suspend()
        assert server.post("/v1/completions", LONG).status_code == 504
        server.worker().resume()
        assert server.post("/v1/completions", SHORT).status_code == 200
        server.wait_until_nothing_is_left_of_it(before)


async def post(server: RunningServer, body: dict[str, Any]) -> httpx.Response:
    """On a connection of its own; httpx takes ten times as long to make hundreds of them."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    content = json.dumps(body).encode()
    lines = f"Host: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    writer.write(f"POST /v1/completions HTTP/1.1\r\n{lines}\r\n\r\n".encode() + content)
    head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status_line, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    return httpx.Response(int(status_line.split()[1]), headers=headers, content=answer)
