"""Decodes the bytes of a server-sent event stream into payloads. Knows no JSON schema and no HTTP.

It follows the standard (https://html.spec.whatwg.org/multipage/server-sent-events.html), with three extensions that
servers need: events without a blank line between them, `error:` in place of `event: error` (llama.cpp), and a line of
bare JSON (Ollama's errors).
"""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

import msgspec

from mlx_manager.mlx_server.services.upstreams.shapes import BadChunk

MAX_EVENT_BYTES = 2**24
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    payload: bytes
    """Never blank."""
    is_error: bool = False
    """Whether the event is named `error`."""

    @property
    def is_done(self) -> bool:
        return self.payload == _DONE


class EventStreamDecoder:
    """Feed it bytes, and flush it at the end: the last event may lack its line break."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._name = b""
        self._bytes = 0
        self._at_start = True

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """Raises BadChunk for an event of more than MAX_EVENT_BYTES."""
        lines = (self._rest + piece).splitlines(keepends=True)  # bytes split at CR, LF and CRLF, not at U+2028
        # A CR at the end may be the first half of a line break.
        self._rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BadChunk(f"sent an event of more than {MAX_EVENT_BYTES} bytes")
        events = (self._read(line.rstrip(b"\r\n")) for line in lines)
        return [event for event in events if event is not None]

    def flush(self) -> list[ServerSentEvent]:
        """The remaining events, without an incomplete one."""
        rest, self._rest = self._rest.rstrip(b"\r\n"), b""
        events = (self._read(rest), self._dispatch())
        return [event for event in events if event is not None and (event.is_error or _is_whole(event.payload))]

    def _read(self, line: bytes) -> ServerSentEvent | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._dispatch()
        if line.startswith(b"{") and not self._data:
            return ServerSentEvent(line)
        name, _, value = line.partition(b":")  # a comment has no name
        return self._read_field(name, value.removeprefix(b" "))

    def _read_field(self, name: bytes, value: bytes) -> ServerSentEvent | None:
        if name == b"event":
            self._name = value
        elif name in (b"data", b"error") and (value.strip() or self._data):
            if name == b"error":
                self._name = name
            self._data.append(value)
            self._bytes += len(value)
            if self._bytes > MAX_EVENT_BYTES:
                raise BadChunk(f"sent an event of more than {MAX_EVENT_BYTES} bytes")
            if len(self._data) == 1 and _is_whole(value):  # the blank line may never come
                return self._dispatch()
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        payload = b"\n".join(self._data).strip()
        is_error = self._name == b"error"
        self._data, self._bytes, self._name = [], 0, b""
        return ServerSentEvent(payload, is_error) if payload else None


async def events_of(pieces: AsyncIterator[bytes]) -> AsyncGenerator[ServerSentEvent, None]:
    """Raises BadChunk, and what `pieces` raises."""
    decoder = EventStreamDecoder()
    async for piece in pieces:
        for event in decoder.feed(piece):
            yield event
    for event in decoder.flush():
        yield event


def _is_whole(value: bytes) -> bool:
    """Whether `value` is a whole JSON object or [DONE], which ends the event: a prefix of an object is not JSON."""
    value = value.strip()
    if value == _DONE:
        return True
    try:
        msgspec.json.decode(value, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return value.startswith(b"{")
