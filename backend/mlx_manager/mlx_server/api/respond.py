"""One request's events to its HTTP answer: the only HTTP code that knows `stream`.

The first event is awaited before headers are sent, so refusals are real statuses in both modes. From the first moment
the client is watched: when it leaves, the events are closed, and with them the generation.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
import msgspec
from fastapi import Request, Response
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from mlx_manager.mlx_server.api.dependencies import ServerState, require
from mlx_manager.mlx_server.api.edge.rules import protocol_of
from mlx_manager.mlx_server.api.exchange import STATUS_CLIENT_CLOSED_REQUEST, exchange_of, note_generation
from mlx_manager.mlx_server.api.reading import converted
from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.protocols.base import AnyProtocol, ParseOptions, Protocol, Writer
from mlx_manager.mlx_server.types import GenerationEvent, GenerationEvents

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ClientLeft(Exception):
    pass


async def count_tokens(body: Any, request: Request, state: ServerState | None) -> int:
    """How many tokens the prompt has that `answer` would read for the body."""
    server, protocol = require(state), _generating_protocol(request)
    return await server.inference.count_tokens(await converted(request, protocol.parse, body, _options(server)))


async def answer(body: Any, request: Request, state: ServerState | None) -> Response:
    """The answer to a body of the protocol that the request's path belongs to. Raises the ServerError that refuses it.

    The body says with `stream` whether it wants a stream, in every protocol.
    """
    server, protocol = require(state), _generating_protocol(request)
    generation = await converted(request, protocol.parse, body, _options(server))
    note_generation(request, generation, body.stream)
    return await _respond(request, server.inference.generate(generation), protocol.writer(generation), body.stream)


def _generating_protocol(request: Request) -> AnyProtocol:
    protocol = protocol_of(request.scope)
    assert isinstance(protocol, Protocol)
    return protocol


def _options(server: ServerState) -> ParseOptions:
    return ParseOptions(server.settings.default_max_tokens, server.settings.reject_unknown_fields)


async def _respond(request: Request, events: GenerationEvents, writer: Writer, stream: bool) -> Response:
    try:
        if stream:
            first = await unless_client_leaves(request, _first(events))
            return _EventStream(events, _frames(first, events, writer, exchange_of(request).request_id), writer)
        generation = await unless_client_leaves(request, fold(events))
        return Response(msgspec.json.encode(writer.response(generation)), media_type="application/json")
    except ClientLeft:
        await events.aclose()
        return Response(status_code=STATUS_CLIENT_CLOSED_REQUEST)


class _EventStream(EventSourceResponse):
    """Owns the events: they are closed when the response ends, however early it does."""

    def __init__(self, events: GenerationEvents, content: AsyncGenerator[bytes, None], writer: Writer) -> None:
        super().__init__(content, ping=writer.keep_alive_seconds)
        del self.headers["connection"]  # whether it stays open is for the server to say
        self._events = events
        self._writer = writer
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

    async def _ping(self, send: Send) -> None:
        while self.active:
            await anyio.sleep(self.ping_interval)
            async with self._send_lock:
                frame = self._writer.keep_alive() if self.active else b""
                if frame:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})


async def _first(events: GenerationEvents) -> GenerationEvent:
    return await anext(events)


async def _frames(
    first: GenerationEvent, events: GenerationEvents, writer: Writer, request_id: str
) -> AsyncGenerator[bytes, None]:
    """The SSE stream. A failure in its middle becomes the protocol's error frame, and nothing follows it."""
    for frame in writer.frames(first):
        yield frame
    try:
        async for event in events:
            for frame in writer.frames(event):
                yield frame
    except Exception as exc:
        if not isinstance(exc, ServerError):
            logger.exception("A stream failed")
        yield writer.error_frame(exc, request_id)
        return
    yield writer.end()


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
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
