"""Which web pages a browser lets ask (CORS): none, unless the setting `cors_origins` names them."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_manager.mlx_server.api.edge.rules import rules_of

EXPOSED_HEADERS = (
    "x-request-id",
    "x-mlx-manager-warning",
    "retry-after",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)


class Cors:
    """Starlette's, made anew when the origins change."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._origins: tuple[str, ...] = ()
        self._with_cors = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        origins = rules_of(scope).cors_origins
        if origins != self._origins:
            self._origins, self._with_cors = origins, _with_cors(self._app, origins)
        return await self._with_cors(scope, receive, send)


def _with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """Without cookies, which this server does not know: a page sends its key in a header."""
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED_HEADERS
    )
