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


def is_json(scope: Scope) -> bool:
    """Whether the body is to be read as JSON: also where the client says nothing, or what curl says of all data."""
    given = header(scope, b"content-type")
    kind = given.partition(b";")[0].strip().lower()
    return (
        given == b""
        or kind in (b"application/json", b"application/x-www-form-urlencoded")
        or (kind.startswith(b"application/") and kind.endswith(b"+json"))
    )


def header(scope: Scope, name: bytes) -> bytes:
    """The first one of that name; empty without one."""
    return next((value for key, value in scope["headers"] if key == name), b"")
