"""Limits of connections: their number, and the time and size of request headers. Does not know the routes.

Extends uvicorn's httptools protocol; `tests/mlx_server/api/test_connections.py` has the attack or client behind each
part. Rejections here are written as raw bytes, and no middleware sees them.
"""

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.protocols.errors import ErrorKind, envelope

MAX_HEADER_BYTES = 65_536
MAX_HEADERS = 200
MAX_PIPELINED = 16
LINGER_SECONDS = 2.0
_EXTRA_CONNECTIONS = 64
"""Connections beyond the limit that get an error answer. The server drops any more."""


@dataclass(frozen=True, slots=True)
class _ErrorReply:
    kind: ErrorKind
    message: str
    headers: bytes = b""


_MALFORMED = _ErrorReply(
    ErrorKind(400, "invalid_request_error", "invalid_http"), "Malformed HTTP/1.1 request. Check the client."
)
_TOO_LARGE = _ErrorReply(
    ErrorKind(431, "invalid_request_error", "headers_too_large"),
    f"The headers exceed {MAX_HEADER_BYTES:,} bytes or {MAX_HEADERS} fields. Send fewer or shorter headers.",
)
_TOO_SLOW = _ErrorReply(
    ErrorKind(408, "invalid_request_error", "request_timeout"),
    "Timed out reading the request headers. Send them at once.",
)
_FULL = _ErrorReply(
    ErrorKind(503, "server_error", "too_many_connections"),
    "Too many connections are open. Close idle ones, or retry in a second.",
    b"retry-after: 1\r\n",
)


class _StopParsing(Exception):
    """Ends the parsing of a connection; `_error_reply` holds the answer."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `bounds` are set by `protocol_with`."""

    bounds: ClassVar[Bounds]

    _error_reply = _MALFORMED
    _drops_input = False
    """Whether further input is dropped."""
    _in_headers = False
    _in_body = False
    _header_bytes = 0
    _running: RequestResponseCycle | None = None
    _header_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        over = len(self.connections) - self.bounds.max_connections
        super().connection_made(_ClosingTransport(transport, self))
        if over >= _EXTRA_CONNECTIONS:
            transport.abort()
        elif over >= 0:
            self._in_headers = True  # a request is in transit, or will be
            self._reply_and_close(_FULL)
        else:
            self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(self.transport, _ClosingTransport):
            self.transport.closed()
        self._stop_timing_headers()
        self.resume_writing()
        self._unset_keepalive_if_required()
        self._disconnect_request()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._drops_input:
            return
        self._unset_keepalive_if_required()
        was_in_body, request_before = self._in_body, self.cycle
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._reject()
        if (
            self._in_headers and not (was_in_body or self._drops_input) and self.cycle is request_before
        ):  # all are headers
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._reply_and_close(_TOO_LARGE)
        if self._is_idle() and self._header_timer is None:
            self._time_headers()  # an empty line has ended uvicorn's own keep-alive timer

    def _parse(self, data: bytes) -> None:
        """Reads a request that offers another protocol (h2c of Java's client, websocket) as HTTP/1.1.

        httptools treats the bytes after such headers as the other protocol. A new parser therefore gets the same
        headers without the offer, and the bytes after them.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            head = self._head_without_offer()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self._parse(head + data[offer.args[0] :])

    def _head_without_offer(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _reject(self) -> None:
        """After unparsable input: finishes the answer in progress, then closes the connection."""
        if self._in_body and self.pipeline:
            self.transport.abort()
        elif self.cycle is None or self.cycle.response_complete or self._in_body:
            self._reply_and_close(self._error_reply)
        else:
            self._drops_input = True
            self.cycle.keep_alive = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        if self._header_timer is None:
            self._time_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Skips trailers, which follow the body."""
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            raise _StopParsing  # always another protocol
        if self.parser.should_upgrade():
            return  # `_parse` goes on
        self._stop_timing_headers()
        self._in_headers = False
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            self._error_reply = _TOO_LARGE
            raise _StopParsing
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _StopParsing
        super().on_headers_complete()
        self._in_body = True

    def on_message_complete(self) -> None:
        if self._in_body:  # else the headers offer another protocol
            super().on_message_complete()
        self._in_body = False

    def pause_writing(self) -> None:
        """Drops a client that stops reading for too long."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self.bounds.body_timeout_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _time_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.bounds.header_timeout_seconds, self._headers_are_late)

    def _stop_timing_headers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_are_late(self) -> None:
        """Closes a connection that sent no byte without an answer, like an idle one."""
        self._header_timer = None
        if self._in_headers:
            self._error_reply = _TOO_SLOW
            self._reject()
        elif self._is_idle():
            self.transport.close()

    def _is_idle(self) -> bool:
        return not (self._in_headers or self._in_body) and (self.cycle is None or self.cycle.response_complete)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _disconnect_request(self) -> None:
        """Reports the disconnect to the app. uvicorn reports it to the last pipelined request only, which is queued."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _reply_and_close(self, reply: _ErrorReply) -> None:
        self._stop_timing_headers()
        self._disconnect_request()
        self.transport.write(_raw(reply))
        self.transport.close()

    def drop_input(self) -> bool:
        """Drops further input. Returns whether the client is still sending."""
        self._drops_input = True
        return self._in_headers or self._in_body


class _ClosingTransport(asyncio.Transport):
    """A connection's transport whose `close` delivers the answer and ends within a time limit.

    Closing a socket with unread bytes sends a reset, and the client may lose the answer. A plain transport also waits
    without limit until the client has read everything.
    """

    def __init__(self, transport: asyncio.Transport, protocol: GuardedProtocol) -> None:
        super().__init__()
        self._transport = transport
        self._protocol = protocol
        self._timer: asyncio.TimerHandle | None = None
        self.write = transport.write  # type: ignore[method-assign]  # called for each token of a stream
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.abort = transport.abort  # type: ignore[method-assign]

    def is_closing(self) -> bool:
        return self._timer is not None or self._transport.is_closing()

    def close(self) -> None:
        """Gives the client some seconds to stop sending and to read the answer. Later calls have no effect."""
        if self.is_closing():
            return
        is_sending = self._protocol.drop_input()
        seconds = LINGER_SECONDS if is_sending else self._protocol.bounds.body_timeout_seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._transport.abort)
        if is_sending and self._transport.can_write_eof():
            self._transport.resume_reading()
            self._transport.write_eof()
        else:
            self._transport.close()

    def closed(self) -> None:
        """The connection has ended."""
        if self._timer is not None:
            self._timer.cancel()


def protocol_with(bounds: Bounds) -> type[GuardedProtocol]:
    """The class for `uvicorn.Config(http=...)`, which creates one per connection."""
    return type("BoundedProtocol", (GuardedProtocol,), {"bounds": bounds})


def _raw(reply: _ErrorReply) -> bytes:
    body = json.dumps(envelope(reply.kind, reply.message, None)).encode()
    status = HTTPStatus(reply.kind.status)
    lines = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
    ending = f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return lines.encode() + reply.headers + ending.encode() + body
