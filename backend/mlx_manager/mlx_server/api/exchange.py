"""One `Exchange` for each HTTP request: made before anything else sees the request, ended after its last byte."""

import uuid

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_manager.mlx_server.records import Exchange


class ExchangeMiddleware:
    """The outermost one. The exchange is `scope["state"]["exchange"]`, for all that come after."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        exchange = Exchange(uuid.uuid4().hex, scope["method"], scope["path"])
        scope.setdefault("state", {})["exchange"] = exchange

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", exchange.request_id.encode())]
            await send(message)

        return await self._app(scope, receive, noting)


def exchange_of(request: Request) -> Exchange:
    exchange: Exchange = request.state.exchange
    return exchange
