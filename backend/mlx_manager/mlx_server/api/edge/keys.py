"""Who asks: nobody that is known, a user with an API key, or whoever has the admin key.

Every path needs a key but those that tell whether the server is there. The admin endpoints ask for more themselves.
"""

import secrets
from collections.abc import Iterator
from enum import IntEnum

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_manager.mlx_server.api.edge.refusals import refuse
from mlx_manager.mlx_server.api.edge.rules import EdgeRules, digest_of, is_of_network, path_of, rules_of
from mlx_manager.mlx_server.errors import AdminClosed, NotAuthorized

OPEN_PATHS = frozenset({"/health", "/ready", "/api/hello"})
CHALLENGE = {"www-authenticate": "Bearer"}
_NO_KEY = "This server asks for an API key: send yours as Authorization: Bearer KEY, or as x-api-key: KEY."
_WRONG_KEY = (
    "This API key is not known here: send one of this server's as Authorization: Bearer KEY, or x-api-key: KEY."
)


class Access(IntEnum):
    NONE = 0
    USER = 1
    ADMIN = 2


class KeyCheck:
    """Notes the `Access` in `scope["state"]`, and the key's name in the exchange."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        offered = list(_offered(scope))
        access, name = _access(rules_of(scope), scope, offered)
        scope["state"]["access"] = access
        scope["state"]["exchange"].key_name = name
        if access is Access.NONE and path_of(scope) not in OPEN_PATHS:
            error = NotAuthorized(_WRONG_KEY if offered else _NO_KEY)
            return await refuse(error, scope, receive, send, CHALLENGE)
        return await self._app(scope, receive, send)


def access_of(request: Request) -> Access:
    access: Access = request.state.access
    return access


async def require_admin(request: Request) -> None:
    """For the admin endpoints. Raises NotAuthorized or AdminClosed."""
    if access_of(request) is Access.ADMIN:
        return
    if rules_of(request.scope).admin_digest is not None:
        raise NotAuthorized("This endpoint needs the admin key: send it as Authorization: Bearer KEY.")
    raise AdminClosed("An API key does not open this endpoint: set MLX_SERVER_ADMIN_KEY, and send that key.")


def has_known_key(rules: EdgeRules, scope: Scope) -> bool:
    return _by_key(rules, list(_offered(scope))) is not None


def _access(rules: EdgeRules, scope: Scope, offered: list[bytes]) -> tuple[Access, str | None]:
    known = _by_key(rules, offered)
    if known is not None:
        return known
    if rules.keys:
        return Access.NONE, None
    is_open = rules.admin_digest is None and (rules.insecure_no_auth or not _from_elsewhere(scope))
    return Access.ADMIN if is_open else Access.USER, None


def _by_key(rules: EdgeRules, offered: list[bytes]) -> tuple[Access, str] | None:
    """All keys are compared, whichever fits: the time it takes tells nothing."""
    digests = [digest_of(key) for key in offered]
    is_admin = _fits(rules.admin_digest, digests) if rules.admin_digest is not None else False
    names = [key.name for key in rules.keys if _fits(key.digest, digests)]
    if is_admin:
        return Access.ADMIN, "admin"
    return (Access.USER, names[0]) if names else None


def _fits(digest: bytes, offered: list[bytes]) -> bool:
    return any([secrets.compare_digest(digest, other) for other in offered])  # noqa: C419  no early exit


def _offered(scope: Scope) -> Iterator[bytes]:
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()


def _from_elsewhere(scope: Scope) -> bool:
    """Whether the connection came in at an address of the network."""
    server = scope.get("server")
    return server is not None and is_of_network(server[0])
