"""Answers a request that goes no further. Middlewares stand outside of the app's error handlers, and use this."""

from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from mlx_manager.mlx_server.api.edge.rules import protocol_of
from mlx_manager.mlx_server.errors import ServerError


async def refuse(
    error: ServerError,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: Mapping[str, str] | None = None,
    *,
    is_read: bool = False,
) -> None:
    """The connection closes where a body is still to come, which the server does not read."""
    exchange = scope["state"]["exchange"]
    exchange.error = error
    reply = protocol_of(scope).error(error, exchange.request_id)
    closing = {"connection": "close"} if has_body(scope) and not is_read else {}
    sent = {**(headers or {}), **reply.headers, **closing}
    await JSONResponse(reply.body, reply.status, sent)(scope, receive, send)


def has_body(scope: Scope) -> bool:
    return header(scope, b"content-length") not in (b"", b"0") or header(scope, b"transfer-encoding") != b""


def header(scope: Scope, name: bytes) -> bytes:
    """The first one of that name; empty without one."""
    return next((value for key, value in scope["headers"] if key == name), b"")
