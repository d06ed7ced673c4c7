"""Reads a request's body whole, within its bounds, before the routes see the request.

What is too long is refused before it is read, or as soon as it has grown too long. What the routes get is plain bytes
that a JSON parser may have.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_manager.mlx_server.api.edge.json_shape import fault_of_json, off_loop
from mlx_manager.mlx_server.api.edge.refusals import has_body, header, is_json, refuse
from mlx_manager.mlx_server.errors import (
    BrokenBody,
    RequestTooLarge,
    RequestTooSlow,
    ServerBusy,
    ServerError,
    UnsupportedEncoding,
)

SMALL_BODY_BYTES = 2**20
LARGEST_BODIES_HELD = 8
BYTES_PER_MB = 2**20
SLOWEST_BYTES_PER_SECOND = 16_384


class _ClientLeft(Exception):
    """Before its body was complete."""


class BodyLimits:
    """Bodies above 1 MiB share the room of eight of the largest; each holds its part until its answer has ended."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_json_depth: int, timeout_seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_json_depth = max_json_depth
        self._timeout_seconds = timeout_seconds
        self._room = _Room(LARGEST_BODIES_HELD * max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has_body(scope):
            return await self._app(scope, receive, send)
        share = _Share(self._room)
        try:
            self._check_headers(scope)
            body = await self._read(receive, share)
            await self._pass_on(body, scope, receive, send)
        except _ClientLeft:
            return None
        except _Refused as exc:
            await refuse(exc.error, scope, receive, send)
        finally:
            share.give_back()

    def _check_headers(self, scope: Scope) -> None:
        length = header(scope, b"content-length")
        if length.isdigit() and int(length) > self._max_bytes:
            raise _Refused(self._too_large())
        encoding = header(scope, b"content-encoding").strip().lower()
        if encoding not in (b"", b"identity"):
            raise _Refused(UnsupportedEncoding("Compressed bodies are not read: send it without Content-Encoding."))

    async def _read(self, receive: Receive, share: "_Share") -> bytes:
        """A body that stops coming, or comes more slowly than anybody's line is, is refused."""
        body, begun = bytearray(), asyncio.get_running_loop().time()
        while True:
            try:
                async with asyncio.timeout_at(begun + self._timeout_seconds + len(body) / SLOWEST_BYTES_PER_SECOND):
                    message = await receive()
            except TimeoutError as exc:
                late = RequestTooSlow(f"Of the body only {len(body)} bytes came in time: send it at once.")
                raise _Refused(late) from exc
            if message["type"] == "http.disconnect":
                raise _ClientLeft
            body += message["body"]
            share.grow(len(message["body"]))
            if len(body) > self._max_bytes:
                raise _Refused(self._too_large())
            if not message.get("more_body", False):
                return bytes(body)

    async def _pass_on(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        fault = await off_loop(len(body), fault_of_json, body, self._max_json_depth) if is_json(scope) else None
        if fault is not None:
            return await refuse(BrokenBody(fault), scope, receive, send, is_read=True)
        return await self._app(scope, _replaying(body, receive), send)

    def _too_large(self) -> RequestTooLarge:
        limit = f"{self._max_bytes / BYTES_PER_MB:g} MB"
        return RequestTooLarge(f"The body is larger than {limit}: send less, or raise MLX_SERVER_MAX_BODY_MB.")


class _Refused(Exception):
    """For the middleware alone: a ServerError of the app below it is not its to answer."""

    def __init__(self, error: ServerError) -> None:
        super().__init__(error.message)
        self.error = error


class _Room:
    """What bodies may hold together."""

    def __init__(self, total_bytes: int) -> None:
        self.free_bytes = total_bytes


class _Share:
    """One body's part of the room."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._bytes = 0

    def grow(self, count: int) -> None:
        """Raises `_Refused` when there is no room; small bodies always find some."""
        self._bytes += count
        self._room.free_bytes -= count
        if self._bytes > SMALL_BODY_BYTES and self._room.free_bytes < 0:
            busy = ServerBusy("Too many large requests are under way: try again shortly.", retry_after_seconds=1)
            raise _Refused(busy)

    def give_back(self) -> None:
        self._room.free_bytes += self._bytes


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Gives the body, and then what the client does: it leaves, sooner or later."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
