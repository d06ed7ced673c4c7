"""One request's events to its HTTP answer: the only HTTP code that knows `stream`.

The first event is awaited before headers are sent, so refusals are real statuses in both modes. From the first moment
the client is watched: when it leaves, the events are closed, and with them the generation.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import msgspec
from fastapi import Request, Response
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from mlx_manager.mlx_server.api.exchange import STATUS_CLIENT_CLOSED_REQUEST
from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.protocols.errors import error_body
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.types import Generation, GenerationEvent, GenerationEvents, fold

logger = logging.getLogger(__name__)

T = TypeVar("T")
KEEP_ALIVE_SECONDS = 15


class Builder(Protocol):
    """A protocol's writer: chunks from events, or one response from the generation."""

    def event(self, event: GenerationEvent) -> list[JsonObject]: ...

    def response(self, generation: Generation) -> JsonObject: ...


class ClientLeft(Exception):
    pass


async def respond(request: Request, events: GenerationEvents, builder: Builder, stream: bool) -> Response:
    """The answer to the request. Raises the ServerError that refuses it."""
    try:
        if stream:
            first = await _unless_client_leaves(request, _first(events))
            return _EventStream(events, _chunks(first, events, builder))
        generation = await _unless_client_leaves(request, fold(events))
        return Response(msgspec.json.encode(builder.response(generation)), media_type="application/json")
    except ClientLeft:
        await events.aclose()
        return Response(status_code=STATUS_CLIENT_CLOSED_REQUEST)


class _EventStream(EventSourceResponse):
    """Owns the events: they are closed when the response ends, however early it does."""

    def __init__(self, events: GenerationEvents, content: AsyncGenerator[bytes, None]) -> None:
        super().__init__(content, sep="\n", ping=KEEP_ALIVE_SECONDS)
        del self.headers["connection"]  # whether it stays open is for the server to say
        self._events = events
        self._content = content
        self._is_complete = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events), aclosing(self._content):
                await super().__call__(scope, receive, send)
        finally:
            if not self._is_complete:
                scope["state"]["exchange"].status = STATUS_CLIENT_CLOSED_REQUEST

    async def _stream_response(self, send: Send) -> None:
        """One send per chunk and nothing else: the stock loop opens a cancel scope, and looks to encode, for each."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._content:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        async with self._send_lock:
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._is_complete = True


async def _first(events: GenerationEvents) -> GenerationEvent:
    return await anext(events)


async def _chunks(first: GenerationEvent, events: GenerationEvents, builder: Builder) -> AsyncGenerator[bytes, None]:
    """The SSE stream. A failure in its middle becomes the error event, and no [DONE] follows it."""
    for chunk in builder.event(first):
        yield _sse(chunk)
    try:
        async for event in events:
            for chunk in builder.event(event):
                yield _sse(chunk)
    except Exception as exc:
        if not isinstance(exc, ServerError):
            logger.exception("A stream failed")
        yield _sse(error_body(exc))
        return
    yield b"data: [DONE]\n\n"


def _sse(chunk: JsonObject) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


async def _unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; raises ClientLeft, with the work cancelled and ended, when the client leaves first."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_client_leaves(request))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
