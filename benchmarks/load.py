"""The load generator: streams completions over raw HTTP/1.1 connections, as cheaply as Python can.

It shares the machine with what it measures, so it parses no JSON: a chunk is a `data: ` line.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.workload import StreamTimes, Workload

CONTENT_MARK = b'data: {"id"'
"""Begins every chunk of OpenAI's stream, and neither the [DONE] line nor a comment."""
DONE_MARK = b"data: [DONE]"


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
        payload = json.dumps(body | extra).encode()
        path = urlsplit(self.base_url).path.rstrip("/") + "/v1/completions"
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


class StreamConnection(asyncio.Protocol):
    """One keep-alive connection: `stream` sends a request and notes when its chunks arrive."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._times = StreamTimes()
        self._started = 0.0
        self._tail = b""
        self._done: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, target: Target) -> "StreamConnection":
        _, protocol = await asyncio.get_running_loop().create_connection(cls, *target.address)
        return protocol

    async def stream(self, request: bytes, max_tokens: int, started: float) -> StreamTimes:
        """Times from `started` (perf_counter) on; the last chunk, which only ends the choice, is not counted."""
        assert self._transport is not None
        self._times, self._started, self._tail = StreamTimes(), started, b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done
        self._times.arrivals.pop()
        self._times.tokens = max_tokens
        return self._times

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(f"the server closed the stream: {self._tail[-300:]!r}"))

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter() - self._started
        text = self._tail + data
        self._times.arrivals += [now] * (text.count(CONTENT_MARK) - self._tail.count(CONTENT_MARK))
        self._tail = text[-200:]
        if self._done is None or self._done.done():
            return
        if DONE_MARK in text:
            self._done.set_result(None)
        elif not self._times.arrivals and b" 200 OK" not in text[:20] and b'{"error"' in text:
            self._done.set_exception(ConnectionError(f"the server refused: {text[-300:]!r}"))


async def run_waves(target: Target, workload: Workload, **extra: object) -> tuple[list[list[StreamTimes]], float]:
    """All waves, and the seconds they took."""
    connections = [await StreamConnection.open(target) for _ in range(workload.concurrency)]
    waves = []
    began = time.perf_counter()
    for prompts in workload.prompts():
        requests = [target.request(prompt, workload.output_tokens, **extra) for prompt in prompts]
        started = time.perf_counter()
        streams = (
            connection.stream(request, workload.output_tokens, started)
            for connection, request in zip(connections, requests, strict=True)
        )
        waves.append(list(await asyncio.gather(*streams)))
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return waves, seconds
