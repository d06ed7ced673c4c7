"""Where a request comes from: the name that it calls the server by (Host), and the web page that sends it (Origin).

Any page that a browser shows can send requests to a server on loopback. The Host header stops pages whose own name
points to 127.0.0.1 (DNS rebinding), the Origin header stops all others from changing anything, and without CORS headers
the browser lets them read no answer.
"""

import re

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_manager.mlx_server.api.edge.keys import has_known_key
from mlx_manager.mlx_server.api.edge.refusals import refuse
from mlx_manager.mlx_server.api.edge.rules import EdgeRules, is_loopback, rules_of
from mlx_manager.mlx_server.errors import HostNotAllowed, OriginNotAllowed, ServerError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOCAL_NAMES = frozenset({"localhost", "host.docker.internal", "gateway.docker.internal", "host.containers.internal"})
"""Names of this machine: its own, and those by which containers on it reach its loopback address."""
EXPOSED_HEADERS = (
    "x-request-id",
    "request-id",
    "x-mlx-manager-warning",
    "retry-after",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
SHOWN_CHARACTERS = 100
_ADDRESS = re.compile(r"(?P<name>[^\s/?#@:,\[\]]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Guard:
    """Before all else that looks at a request. Answers CORS preflights itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._origins: re.Pattern[str] | None = None
        self._with_cors = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        rules = rules_of(scope)
        error = _fault_of_origin(rules, scope) or _fault_of_host(rules, scope)
        if error is not None:
            return await refuse(error, scope, receive, send)
        if rules.cors_origins != self._origins:  # the settings were reloaded
            self._origins, self._with_cors = rules.cors_origins, _with_cors(self._app, rules.cors_origins)
        return await self._with_cors(scope, receive, send)


def _with_cors(app: ASGIApp, origins: re.Pattern[str] | None) -> ASGIApp:
    """Without cookies, which this server does not use: a page sends its key in a header."""
    if origins is None:
        return app
    return CORSMiddleware(
        app,
        allow_origin_regex=origins,  # type: ignore[arg-type]  # re.compile takes a compiled one
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )


def _fault_of_origin(rules: EdgeRules, scope: Scope) -> ServerError | None:
    """A browser sends Origin with every unsafe method, or else Sec-Fetch-Site. Programs send neither."""
    if scope["method"] in SAFE_METHODS:
        return None
    origins, hosts = _values(scope, b"origin"), _values(scope, b"host")
    foreign = [origin for origin in origins if not (_is_listed(rules, origin) or _is_own(origin, hosts))]
    is_cross_site = any(site.lower() == "cross-site" for site in _values(scope, b"sec-fetch-site"))
    if not foreign and (origins or not is_cross_site):
        return None
    if has_known_key(rules, scope):  # a foreign page cannot know one
        return None
    sender = f"the origin {foreign[0][:SHOWN_CHARACTERS]!r}" if foreign else "another site"
    return OriginNotAllowed(
        f"Refused a {scope['method']} request of a web page of {sender}. To let the page in, add its origin to "
        "MLX_SERVER_CORS_ORIGINS, or send an API key of this server."
    )


def _is_listed(rules: EdgeRules, origin: str) -> bool:
    return rules.cors_origins is not None and rules.cors_origins.fullmatch(origin) is not None


def _is_own(origin: str, hosts: list[str]) -> bool:
    """Whether a page of `origin` came from this server: the same name and port as Host has.

    A port that is left out is that of the page's scheme. A proxy that ends TLS leaves the server to see http alone.
    """
    scheme, _, address = origin.lower().partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    if default is None or len(hosts) != 1:
        return False
    page, server = _ADDRESS.fullmatch(address), _ADDRESS.fullmatch(hosts[0].lower())
    if page is None or server is None or page["name"] != server["name"]:
        return False
    return int(page["port"] or default) == int(server["port"] or default)


def _fault_of_host(rules: EdgeRules, scope: Scope) -> ServerError | None:
    """A client of HTTP/1.0 may leave the header out; browsers never do."""
    on_loopback = _connected_over_loopback(scope)
    if "*" in rules.allowed_hosts or not (on_loopback or rules.allowed_hosts):
        return None
    hosts = _values(scope, b"host")
    if not hosts and scope["http_version"] == "1.0":
        return None
    name = _name_of(hosts[0]) if len(hosts) == 1 else ""
    if name in rules.allowed_hosts or (on_loopback and (name in LOCAL_NAMES or is_loopback(name))):
        return None
    named = ", ".join(hosts)[:SHOWN_CHARACTERS]
    return HostNotAllowed(
        f"The Host header {named!r} is not a name of this server: ask for 127.0.0.1 or localhost, "
        "or let the name in with MLX_SERVER_ALLOWED_HOSTS."
    )


def _connected_over_loopback(scope: Scope) -> bool:
    """By the address that the connection came in at; a client within the process has none that is an address."""
    server = scope.get("server")
    return server is not None and is_loopback(server[0])


def _name_of(host: str) -> str:
    """Without the port, the brackets of an IPv6 address, and the dot that may end a name."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]
