"""Reads a whole request body within limits of size and time, before routing. Does not decode it."""

import asyncio

from starlette.types import Message, Receive, Scope

from mlx_manager.mlx_server.api.scopes import header
from mlx_manager.mlx_server.errors import RequestTooLarge, RequestTooSlow, ServerBusy, UnsupportedEncoding

SMALL_BODY_BYTES = 2**20
LARGEST_BODIES_HELD = 8
SLOWEST_BYTES_PER_SECOND = 16_384


class ClientDisconnected(Exception):
    """The client disconnected before its body was complete."""


def check_size(scope: Scope, max_bytes: int) -> None:
    """Checks the headers. Raises RequestTooLarge and UnsupportedEncoding."""
    length = header(scope, b"content-length")
    if length.isdigit() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    if header(scope, b"content-encoding").strip().lower() not in (b"", b"identity"):
        raise UnsupportedEncoding(
            "Compressed request bodies are not supported. Send the body without Content-Encoding."
        )


class Bodies:
    """Limits the memory of all bodies above 1 MiB to eight bodies of the largest size, until their answers end."""

    def __init__(self, max_bytes: int, timeout_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._free_bytes = LARGEST_BODIES_HELD * max_bytes

    async def read(self, receive: Receive) -> bytes:
        """Raises RequestTooLarge, RequestTooSlow, ServerBusy and ClientDisconnected. Call `release` afterwards."""
        body = bytearray()
        try:
            await self._read_into(body, receive)
        except BaseException:
            self.release(body)
            raise
        return bytes(body)

    def release(self, body: bytes | bytearray | None) -> None:
        self._free_bytes += len(body) if body is not None else 0

    async def _read_into(self, body: bytearray, receive: Receive) -> None:
        """The time limit grows with the bytes received, so that a client cannot hold it open with a byte a second."""
        begun = asyncio.get_running_loop().time()
        more = True
        while more:
            try:
                async with asyncio.timeout_at(begun + self._timeout_seconds + len(body) / SLOWEST_BYTES_PER_SECOND):
                    message = await receive()
            except TimeoutError as exc:
                raise RequestTooSlow(
                    f"Timed out reading the request body ({len(body)} bytes received). Send it faster, or retry."
                ) from exc
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            body += message["body"]
            self._free_bytes -= len(message["body"])
            if len(body) > self._max_bytes:
                raise _too_large(self._max_bytes)
            if len(body) > SMALL_BODY_BYTES and self._free_bytes < 0:
                raise ServerBusy("Too many large requests are in progress. Retry in a second.", retry_after_seconds=1)
            more = message.get("more_body", False)


def replaying(body: bytes, receive: Receive) -> Receive:
    """Returns the body as one message, then the client's messages: its disconnect."""
    is_sent = False

    async def replay() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body exceeds the limit of {max_bytes / 2**20:g} MB. Send a smaller one.")
