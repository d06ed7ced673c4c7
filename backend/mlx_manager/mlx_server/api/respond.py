"""Turns the events of a request into its HTTP answer, streamed or not. Knows no wire format.

Headers are sent with the first event, so that errors before it have real statuses in both modes. When the client
disconnects, the events are closed, and with them the generation.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from mlx_manager.mlx_server.api.dependencies import ServerState, require
from mlx_manager.mlx_server.api.exchange import STATUS_CLIENT_CLOSED_REQUEST, note_generation
from mlx_manager.mlx_server.api.reading import converted
from mlx_manager.mlx_server.api.scopes import protocol_of
from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.protocols.base import AnyProtocol, ParseOptions, Protocol, Writer
from mlx_manager.mlx_server.records import Exchange
from mlx_manager.mlx_server.types import GenerationEvent, GenerationEvents

logger = logging.getLogger(__name__)

T = TypeVar("T")
_STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Caches do not store a stream, and nginx does not buffer it."""


class ClientDisconnected(Exception):
    pass


async def count_tokens(body: Any, request: Request, state: ServerState | None) -> int:
    """The number of prompt tokens that `answer` would read for the body."""
    server, protocol = require(state), _generating_protocol(request)
    return await server.inference.count_tokens(await converted(request, protocol.parse, body, _options(server)))


async def answer(body: Any, request: Request, state: ServerState | None) -> Response:
    """Answers a body of the protocol of the request's path, streamed if its `stream` is set. Raises ServerError."""
    server = require(state)
    generation = await parsed(body, request, server)
    writer = _generating_protocol(request).writer(generation)
    return await respond(request, server.inference.generate(generation), writer, body.stream)


async def parsed(body: Any, request: Request, server: ServerState) -> Any:
    """The body as the request for a generation. Raises ServerError."""
    protocol = _generating_protocol(request)
    generation = await converted(request, protocol.parse, body, _options(server))
    note_generation(request, generation, body.stream)
    return generation


async def respond(request: Request, events: GenerationEvents, writer: Writer, stream: bool) -> Response:
    return _EventStream(request, events, writer) if stream else await _whole(request, events, writer)


def _generating_protocol(request: Request) -> AnyProtocol:
    protocol = protocol_of(request.scope)
    assert isinstance(protocol, Protocol)
    return protocol


def _options(server: ServerState) -> ParseOptions:
    return ParseOptions(server.settings.default_max_tokens, server.settings.reject_unknown_fields)


async def _whole(request: Request, events: GenerationEvents, writer: Writer) -> Response:
    try:
        generation = await unless_disconnected(request, fold(events))
    except ClientDisconnected:
        await events.aclose()
        return Response(status_code=STATUS_CLIENT_CLOSED_REQUEST)
    return Response(msgspec.json.encode(writer.response(generation)), media_type="application/json")


class _EventStream(Response):
    """Owns the events and closes them when the response ends."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, events: GenerationEvents, writer: Writer) -> None:
        super().__init__(headers=_STREAM_HEADERS)
        del self.headers["content-length"]
        self._request = request
        self._events = events
        self._writer = writer
        self._is_complete = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["state"]["exchange"]
        try:
            async with aclosing(self._events):
                work = self._stream(send, scope["state"]["send"], exchange.request_id)
                await unless_disconnected(self._request, work)
        except ClientDisconnected:
            pass
        finally:
            if exchange.status is not None and not self._is_complete:  # cut off after its headers
                exchange.status = STATUS_CLIENT_CLOSED_REQUEST

    async def _stream(self, send_headers: Send, send: Send, request_id: str) -> None:
        first = await anext(self._events)
        await send_headers({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pinging = asyncio.create_task(self._ping(send))
        try:
            ending = await self._send_events(first, send, request_id)
        finally:
            pinging.cancel()
        await send({"type": "http.response.body", "body": ending, "more_body": False})
        self._is_complete = True

    async def _send_events(self, first: GenerationEvent, send: Send, request_id: str) -> bytes:
        """Sends all frames but the last, which it returns: an error frame if the events fail."""
        frames = self._writer.frames
        try:
            if body := b"".join(frames(first)):
                await send({"type": "http.response.body", "body": body, "more_body": True})
            async for event in self._events:
                if body := b"".join(frames(event)):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        except Exception as exc:
            if not isinstance(exc, ServerError):
                logger.exception("A stream failed")
            return self._writer.error_frame(exc, request_id)
        return self._writer.end()

    async def _ping(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._writer.keep_alive_seconds)
            if frame := self._writer.keep_alive():
                await send({"type": "http.response.body", "body": frame, "more_body": True})


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises ClientDisconnected, after cancelling the work, if the client disconnects first."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
