"""The load generator: streams completions over raw HTTP/1.1 connections, as cheaply as Python can.

It shares the machine with the server, so it parses no JSON: a chunk is a `data: ` line.
"""

import asyncio
import json
import re
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.workload import StreamTimes, Workload

T = TypeVar("T")
CONTENT_MARK = b"data: {"
"""Start of every chunk in OpenAI's stream, but not of the [DONE] line or a comment."""
DONE_MARK = b"data: [DONE]"
ERROR_MARK = b'data: {"error"'
TAIL_BYTES = 1500
"""Enough for the last chunks of a stream, including the usage."""
WITH_USAGE = {"stream_options": {"include_usage": True}}
ACCEPT_SECONDS = 0.01
LIMIT_SECONDS = 600
"""Timeout of a request."""


class Refused(ConnectionError):
    """The server answered with an HTTP status other than 200."""

    def __init__(self, status: int, answer: bytes) -> None:
        super().__init__(f"the server answered with status {status}: {answer!r}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Target:
    base_url: str
    model: str

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.base_url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def request(self, prompt: str, max_tokens: int, **extra: object) -> bytes:
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        body["ignore_eos"] = True  # as most servers name it; the benchmark's own models have no such token
        payload = json.dumps(body | extra).encode()
        path = urlsplit(self.base_url).path.rstrip("/") + "/v1/completions"
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


class StreamConnection(asyncio.Protocol):
    """One keep-alive connection: `stream` sends a request and records the arrival of its chunks in `times`."""

    def __init__(self) -> None:
        self.times = StreamTimes()
        self._transport: asyncio.Transport | None = None
        self._started = 0.0
        self._status: int | None = None
        self._tail = b""
        self._done: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, target: Target) -> "StreamConnection":
        _, protocol = await asyncio.get_running_loop().create_connection(cls, *target.address)
        return protocol

    async def stream(self, request: bytes, max_tokens: int, started: float) -> StreamTimes:
        """Times from `started` (perf_counter) on; the last chunk, which only ends the choice, is not counted.

        Raises Refused, or ConnectionError for an incomplete stream.
        """
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionError("the server closed the connection between two requests")
        self.times, self._started, self._status, self._tail = StreamTimes(), started, None, b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done
        if not self.times.arrivals:
            raise ConnectionError(f"the server answered without a chunk: {self._tail!r}")
        self._read_usage()
        if len(self.times.arrivals) > 1:
            self.times.arrivals.pop()
        self.times.tokens = max_tokens
        return self.times

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport does not subclass it

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is None or self._done.done():
            return
        if self._status is not None and self._status != 200:
            self._done.set_exception(Refused(self._status, self._tail))
        else:
            self._done.set_exception(ConnectionError(f"the server closed the stream: {self._tail!r}"))

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter() - self._started
        if self._done is None or self._done.done():
            return
        overlap = self._tail[1 - len(CONTENT_MARK) :]  # shorter than a mark, so no mark is counted twice
        self.times.arrivals += [now] * (overlap + data).count(CONTENT_MARK)
        received = self._tail + data
        if self._status is None:
            self._status = _status(received)
        self._tail = received[-TAIL_BYTES:]
        if DONE_MARK in self._tail:
            self._done.set_result(None)
        elif self._status != 200 and self._tail.endswith(b"}") and self._status is not None:
            self._done.set_exception(Refused(self._status, self._tail))
        elif ERROR_MARK in self._tail:
            self._done.set_exception(ConnectionError(f"the stream broke off: {self._tail!r}"))

    def _read_usage(self) -> None:
        if re.search(rb'"choices":\s*\[\]', self._tail):
            self.times.arrivals.pop()
        self.times.prompt_tokens = _last_number("prompt_tokens", self._tail)
        self.times.cached_tokens = _last_number("cached_tokens", self._tail)


class Client:
    """Synchronous client: one request at a time, each on its own open connection."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._runner.close()

    def ask(self, prompt: str, max_tokens: int, **extra: object) -> StreamTimes:
        return self._runner.run(ask(self._target, prompt, max_tokens, **extra))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` on uvloop, which costs the generator less than asyncio's loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def ask(target: Target, prompt: str, max_tokens: int, **extra: object) -> StreamTimes:
    """Sends one request on a connection that was opened before the clock starts."""
    connection = await StreamConnection.open(target)
    await asyncio.sleep(ACCEPT_SECONDS)
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            request = target.request(prompt, max_tokens, **extra)
            return await connection.stream(request, max_tokens, time.perf_counter())
    finally:
        connection.close()


async def run_waves(target: Target, workload: Workload, **extra: object) -> tuple[list[list[StreamTimes]], float]:
    """Runs all waves. Returns their results and duration in seconds."""
    connections = [await StreamConnection.open(target) for _ in range(workload.concurrency)]
    began = time.perf_counter()
    waves = [
        all_answered(await _send(connections, target, prompts, workload.output_tokens, **extra))
        for prompts in workload.prompts()
    ]
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return waves, seconds


async def burst(
    target: Target, prompts: Sequence[str], max_tokens: int, **extra: object
) -> list[StreamTimes | BaseException]:
    """Sends all prompts concurrently, in order, each on its own connection. A failed request returns its exception."""
    connections = [await StreamConnection.open(target) for _ in prompts]
    outcomes = await _send(connections, target, prompts, max_tokens, **extra)
    for connection in connections:
        connection.close()
    return outcomes


async def _send(
    connections: Sequence[StreamConnection], target: Target, prompts: Sequence[str], max_tokens: int, **extra: object
) -> list[StreamTimes | BaseException]:
    requests = [target.request(prompt, max_tokens, **extra) for prompt in prompts]
    started = time.perf_counter()
    streams = (
        asyncio.wait_for(connection.stream(request, max_tokens, started), LIMIT_SECONDS)
        for connection, request in zip(connections, requests, strict=True)
    )
    return await asyncio.gather(*streams, return_exceptions=True)


def all_answered(outcomes: list[StreamTimes | BaseException]) -> list[StreamTimes]:
    answered = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        answered.append(outcome)
    return answered


def _status(received: bytes) -> int | None:
    found = re.search(rb"HTTP/1\.1 (\d{3})", received)
    return int(found[1]) if found else None


def _last_number(name: str, text: bytes) -> int | None:
    found = re.findall(rb'"%s":\s*(\d+)' % name.encode(), text)
    return int(found[-1]) if found else None
