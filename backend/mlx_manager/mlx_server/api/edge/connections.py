"""What a connection may do before and beside its requests: how many there are, how slow and how large headers may be.

uvicorn's protocol on httptools, with the bounds that it does not have. What is refused here is no request yet, or none
any more: it is answered in raw bytes, and no middleware sees it.
"""

import asyncio
import json
from array import array
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mlx_manager.mlx_server.api.edge.closing import ClosingTransport
from mlx_manager.mlx_server.protocols.errors import ErrorKind, envelope

MAX_HEADER_BYTES = 65_536
MAX_HEADERS = 200
MAX_PIPELINED = 16
_EXTRA_CONNECTIONS = 64
"""Beyond the limit, while they are told so; more are cut."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    max_connections: int
    header_timeout_seconds: float
    stall_seconds: float
    """How long a client may take nothing in of what is sent to it."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    kind: ErrorKind
    message: str
    headers: bytes = b""


_NO_HTTP = _Refusal(
    ErrorKind(400, "invalid_request_error", "invalid_http"), "What came is no HTTP/1.1 request: check the client."
)
_TOO_MANY_HEADERS = _Refusal(
    ErrorKind(431, "invalid_request_error", "headers_too_large"),
    f"The headers are larger than {MAX_HEADER_BYTES:,} bytes, or more than {MAX_HEADERS}: send less.",
)
_TOO_SLOW = _Refusal(
    ErrorKind(408, "invalid_request_error", "request_timeout"),
    "The headers of the request took too long to arrive: send them at once.",
)
_FULL = _Refusal(
    ErrorKind(503, "server_error", "too_many_connections"),
    "Too many connections are open: close idle ones, or try again shortly.",
    b"retry-after: 1\r\n",
)


class _Broken(Exception):
    """Ends the parsing of a connection; `_refusal` says why."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `limits` are set by `protocol_with`."""

    limits: ClassVar[ConnectionLimits]

    _refusal = _NO_HTTP
    _offering_head: bytes | None = None
    """The head of a request that offers another protocol, without the offer, until the parser gets it."""
    _is_deaf = False
    """Whether what comes is of no interest any more."""
    _in_headers = False
    _in_body = False
    _header_bytes = 0
    _running: RequestResponseCycle | None = None
    _header_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parser = _Parser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        closing = ClosingTransport(transport, self._should_linger, self.limits.stall_seconds)
        full_by = len(self.connections) - self.limits.max_connections
        super().connection_made(closing)
        if full_by >= _EXTRA_CONNECTIONS:
            transport.abort()
        elif full_by >= 0:
            self._in_headers = True  # a request is on its way, or will be
            self._refuse(_FULL)
        else:
            self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        if isinstance(self.transport, ClosingTransport):
            self.transport.closed()
        self._unset_keepalive_if_required()
        self._let_go_of_request()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """uvloop would close the transport itself, and wait for ever for a client that does not read."""
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        was_in_body, request_before = self._in_body, self.cycle
        super().data_received(data)
        if self._in_headers and not (was_in_body or self._is_deaf) and self.cycle is request_before:  # all are headers
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(_TOO_MANY_HEADERS)
        if self._is_idle() and self.timeout_keep_alive_task is None and self._header_timer is None:
            self._time_headers()  # an empty line, which begins no request, has ended uvicorn's own waiting

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this when the parser gives up. What is being answered is answered, and the connection ends."""
        if self._in_body and (self.cycle.response_started or self.pipeline):
            self.transport.abort()
        elif self.cycle is None or self.cycle.response_complete or self._in_body:
            self._refuse(self._refusal)
        else:
            self._is_deaf = True
            self.cycle.keep_alive = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        if self._header_timer is None:
            self._time_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers, which come behind the body, are no headers."""
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self._offering_head = self._head_without_offer()
            return
        self._stop_timing_headers()
        self._in_headers = False
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            self._refusal = _TOO_MANY_HEADERS
            raise _Broken
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _Broken
        super().on_headers_complete()
        self._in_body = True

    def on_message_complete(self) -> None:
        if self._offering_head is not None:
            return
        super().on_message_complete()
        self._in_body = False

    def take_head_without_offer(self) -> bytes:
        head, self._offering_head = self._offering_head, None
        assert head is not None  # the parser has come to the end of the headers
        return head

    def _head_without_offer(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            raise _Broken
        lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        for name, value in self.headers:
            tokens = [token for token in value.split(b",") if token.strip().lower() != b"upgrade"]
            lines.append(name + b": " + (b",".join(tokens) if name == b"connection" else value))
        return b"\r\n".join([*lines, b"", b""])

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self.limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _time_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_timeout_seconds, self._headers_are_late)

    def _stop_timing_headers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_are_late(self) -> None:
        """A connection that brought no byte is closed without a word, as an idle one is."""
        self._header_timer = None
        if self._in_headers:
            self._refusal = _TOO_SLOW
            self.send_400_response("")
        elif self._is_idle():
            self.transport.close()

    def _is_idle(self) -> bool:
        return not (self._in_headers or self._in_body) and (self.cycle is None or self.cycle.response_complete)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        answering: Any = _until_close(app, cycle) if cycle.scope["http_version"] == "1.0" else app
        super()._start_asgi_task(cycle, answering)

    def _let_go_of_request(self) -> None:
        """The app reads that the client has left. uvicorn tells the last of pipelined requests alone, which waits."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _refuse(self, refusal: _Refusal) -> None:
        self._is_deaf = True
        self._stop_timing_headers()
        self._let_go_of_request()
        self.transport.write(_raw(refusal))
        self.transport.close()

    def _should_linger(self) -> bool:
        """Whether the client is still sending: it would read of a reset before it could read the answer."""
        self._is_deaf = True
        return self._in_headers or self._in_body


class _Parser(httptools.HttpRequestParser):
    """Parses a request that offers another protocol (h2c, websocket) as HTTP/1.1, as HTTP lets a server do.

    httptools takes what follows the headers for the other protocol. So a new parser gets the same headers without the
    offer, and what followed them.
    """

    def __init__(self, protocol: GuardedProtocol) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._protocol = protocol

    def feed_data(self, data: "bytes | bytearray | memoryview[int] | array[int]") -> None:
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._protocol.parser = _Parser(self._protocol)
            self._protocol.parser.feed_data(self._protocol.take_head_without_offer() + bytes(data)[offer.args[0] :])


def _until_close(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """For a client of HTTP/1.0, which knows no chunks: the end of the connection ends an answer without a length."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        cycle.chunked_encoding = False
        await app(scope, receive, sending)

    return answering


def protocol_with(limits: ConnectionLimits) -> type[GuardedProtocol]:
    """For `uvicorn.Config(http=...)`, which makes one for each connection."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})


def _raw(refusal: _Refusal) -> bytes:
    body = json.dumps(envelope(refusal.kind, refusal.message, None)).encode()
    status = HTTPStatus(refusal.kind.status)
    lines = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
    ending = f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return lines.encode() + refusal.headers + ending.encode() + body
