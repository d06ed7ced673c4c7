"""Creates an `Exchange` per HTTP request: its id, span, access log line and metrics. Does not know the routes."""

import contextlib
import re
import time
import urllib.parse
import uuid
from collections.abc import Awaitable, Callable, Collection

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_manager.mlx_server.api.scopes import protocol_of
from mlx_manager.mlx_server.observability import (
    AttributeValue,
    Metrics,
    RecentRequests,
    log_access,
    request_log_context,
    request_span,
)
from mlx_manager.mlx_server.records import Exchange
from mlx_manager.mlx_server.types import GenerationRequest

STATUS_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that disconnected; it stands in logs and metrics only."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_UNTRACED = {"/health", "/ready", "/metrics", "/admin/live"}
_PAGE = "/ui/"
_MAX_SHOWN = 200
"""Longest text of a client in logs and spans, in characters."""
_MAX_WARNING = 1000
"""Longest warning header of an answer, in characters."""


class ExchangeMiddleware:
    """The outermost middleware, around the handler of crashes too. The exchange is `scope["state"]["exchange"]`.

    `scope["state"]["send"]` is the HTTP server's own: chunks of a stream bypass middlewares that change headers only.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, recent: RecentRequests, paths: Collection[str], *, spans: bool
    ) -> None:
        """`paths` are the route paths. `spans` is False where no exporter collects them."""
        self._app = app
        self._metrics = metrics
        self._recent = recent
        self._paths = paths
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of several counts
        exchange = Exchange(_request_id(headers), scope["method"], _shown_path(scope))
        scope.setdefault("state", {}).update(exchange=exchange, send=send)
        scope = _as_routed(scope)
        with request_log_context(exchange), self._span(exchange, scope, headers):
            try:
                await self._app(scope, receive, _adding_headers(exchange, protocol_of(scope).request_id_headers, send))
            except BaseException as exc:
                exchange.error = exc
                raise
            finally:
                self._end(exchange, scope)

    def _span(
        self, exchange: Exchange, scope: Scope, headers: dict[bytes, bytes]
    ) -> contextlib.AbstractContextManager[None]:
        if not self._spans or exchange.path in _UNTRACED or exchange.path.startswith(_PAGE):
            return contextlib.nullcontext()
        carrier = {name: headers[name.encode()].decode("latin-1") for name in _PARENT if name.encode() in headers}
        return request_span(exchange, carrier, _client_attributes(scope, headers))

    def _end(self, exchange: Exchange, scope: Scope) -> None:
        exchange.ended = time.perf_counter()
        exchange.endpoint = self._endpoint(scope)
        if exchange.status is None:  # cut off before its answer began
            exchange.status = STATUS_CLIENT_CLOSED_REQUEST
        log_access(exchange)
        self._metrics.exchange_ended(exchange)
        self._recent.exchange_ended(exchange)

    def _endpoint(self, scope: Scope) -> str:
        """The path of the matched route; FastAPI stores the one with router prefixes separately.

        For a request that was rejected before routing, its own path if a route has it.
        """
        included = scope.get("fastapi", {}).get("effective_route_context")
        route = included if included is not None else scope.get("route")
        if route is None:
            return scope["path"] if scope["path"] in self._paths else "other"
        return str(route.path_format)


_PARENT = ("traceparent", "tracestate")


def exchange_of(request: Request) -> Exchange:
    exchange: Exchange = request.state.exchange
    return exchange


def note_generation(request: Request, generation: GenerationRequest, streamed: bool) -> None:
    """Records what the HTTP request generates."""
    exchange = exchange_of(request)
    exchange.generation, exchange.response_id = generation.record, generation.id
    generation.record.streamed, generation.record.key_name = streamed, exchange.key_name


def _adding_headers(
    exchange: Exchange, id_headers: Collection[bytes], send: Send
) -> Callable[[Message], Awaitable[None]]:
    """`send` that adds the request's id and its warnings to the headers."""

    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            ids = [(name, exchange.request_id.encode()) for name in id_headers]
            message["headers"] = [*message.get("headers", ()), *ids]
            if exchange.generation is not None and exchange.generation.warnings:
                message["headers"].append((b"x-mlx-manager-warning", _joined(exchange.generation.warnings)))
        return send(message)

    return sending


def _joined(warnings: list[str]) -> bytes:
    text = "; ".join(dict.fromkeys(warnings))
    return (text if len(text) <= _MAX_WARNING else f"{text[:_MAX_WARNING]}...").encode("ascii", "replace")


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _as_routed(scope: Scope) -> Scope:
    """The scope for routing: without doubled and trailing slashes, and with GET for HEAD.

    The HTTP server still knows the original method and omits the body of an answer to HEAD.
    """
    root = scope.get("root_path", "")
    steps = filter(None, scope["path"].removeprefix(root).split("/"))
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "path": f"{root}/{'/'.join(steps)}", "method": method}


def _shown_path(scope: Scope) -> str:
    """The URL-quoted path without its query."""
    return urllib.parse.quote(scope["path"], errors="replace")[:_MAX_SHOWN]


def _client_attributes(scope: Scope, headers: dict[bytes, bytes]) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {"url.scheme": scope.get("scheme", "http")}
    if scope.get("client"):
        attributes["client.address"] = scope["client"][0]
    if b"user-agent" in headers:
        attributes["user_agent.original"] = headers[b"user-agent"].decode("latin-1")[:_MAX_SHOWN]
    return attributes
