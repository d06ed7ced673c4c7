"""Clients that leave, many at once and at any moment: nothing goes on for them, and nothing is left behind."""

import asyncio
import contextlib
import json
import random
from pathlib import Path

import httpx
import pytest

from tests.running_server import HANG_SECONDS, RunningServer, eventually, running_server

BABBLE = {"model": "babbler", "prompt": "x", "temperature": 0, "max_tokens": 8000}
SHORT = BABBLE | {"max_tokens": 3}

pytestmark = pytest.mark.anyio


async def leave_after(client: httpx.AsyncClient, seconds: float, stream: bool) -> None:
    """Closes the connection of a request that would take much longer."""
    body = BABBLE | {"stream": stream, "prompt": "word " * random.randrange(1, 1000)}
    with contextlib.suppress(TimeoutError):
        async with (
            asyncio.timeout(seconds),
            client.stream("POST", "/v1/completions", json=body) as response,
        ):
            async for _ in response.aiter_lines():
                pass


async def test_storm_of_clients_that_leave_at_random_moments_leaves_nothing_behind(
    tmp_path: Path, babbler: Path
) -> None:
    with running_server(tmp_path, default_model=babbler) as server:
        server.post("/v1/completions", SHORT)
        before, worker = server.holdings(), server.worker()
        async with httpx.AsyncClient(base_url=server.url, timeout=HANG_SECONDS) as client:
            for _ in range(3):
                await asyncio.gather(*(leave_after(client, random.uniform(0.01, 1), i % 2 == 0) for i in range(60)))
        await asyncio.to_thread(worker_is_idle, server)
        answer = server.post("/v1/completions", SHORT)
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert server.worker().pid == worker.pid
        await asyncio.to_thread(server.wait_until_nothing_is_left_of_it, before)
        assert "Traceback" not in server.log.read_text()


def test_eight_long_streams_dropped_at_once_leave_the_worker_idle(tmp_path: Path, babbler: Path) -> None:
    with running_server(tmp_path, default_model=babbler) as server:
        with contextlib.ExitStack() as clients:
            for _ in range(8):
                payloads = clients.enter_context(server.stream("/v1/completions", BABBLE))
                assert json.loads(next(payloads))["choices"]
        worker_is_idle(server)
        assert server.post("/v1/completions", SHORT).status_code == 200


def worker_is_idle(server: RunningServer) -> None:
    """Waits until the worker uses next to no CPU time; what its clients asked for would take it a minute."""
    worker = server.worker()

    def cpu_seconds_of_half_a_second() -> float:
        return worker.cpu_percent(interval=0.5) / 100 * 0.5

    eventually(cpu_seconds_of_half_a_second, lambda used: used <= 0.05, seconds=10)
