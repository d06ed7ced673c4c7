"""Decides which requests reach the routes. The first failed check answers in the protocol of the request's path.

check          | answers      | when
---------------|--------------|------------------------------------------------------------------------------
check_origin   | 403          | a web page is not allowed by the settings: any page can send to loopback
check_host     | 421          | the Host is not this server's: a page's own name may resolve to 127.0.0.1
check_key      | 401          | the key is missing or unknown
Rate.charge    | 429          | the key has used its requests or tokens of the minute
check_size     | 413, 415     | the headers announce a body that is too long or compressed
Bodies.read    | 408, 413, 429| the body is too slow, too long, or one of too many large ones

Between host and key, CORS answers preflights and lets allowed pages read all answers. It knows no request fields.
"""

import hashlib
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from fastapi import Request
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_manager.addresses import is_loopback, is_of_network
from mlx_manager.mlx_server.api.bodies import Bodies, ClientDisconnected, check_size, replaying
from mlx_manager.mlx_server.api.page import is_page
from mlx_manager.mlx_server.api.rates import RateLimits, Rates
from mlx_manager.mlx_server.api.scopes import has_body, headers, path_of, protocol_of
from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.errors import AdminClosed, HostNotAllowed, NotAuthorized, OriginNotAllowed, ServerError

OPEN_PATHS = frozenset({"/health", "/ready", "/api/hello"})
"""Paths without a key: they report only whether the server runs."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOCAL_NAMES = frozenset({"localhost", "host.docker.internal", "gateway.docker.internal", "host.containers.internal"})
"""Names of this machine: its own, and the names that containers on it use for its loopback address."""
EXPOSED_HEADERS = (
    "x-request-id",
    "request-id",
    "x-mlx-manager-warning",
    "retry-after",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
CHALLENGE = {"www-authenticate": "Bearer"}
SHOWN_CHARACTERS = 100
_ADDRESS = re.compile(r"(?P<name>[^\s/?#@:,\[\]]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class KnownKey:
    """An API key as a digest: comparing digests does not leak a key's length by timing."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class GuardRules:
    """The rules that the settings define. A reload replaces the object at `app.state.guard`."""

    keys: tuple[KnownKey, ...]
    admin_digest: bytes | None
    insecure_no_auth: bool
    allowed_hosts: frozenset[str]
    cors_origins: re.Pattern[str] | None
    """Matches the origins of allowed web pages."""
    rates: RateLimits


def guard_rules(settings: MLXServerSettings) -> GuardRules:
    """Raises ValueError when the key file cannot be read."""
    admin_key = settings.admin_key
    return GuardRules(
        keys=tuple(KnownKey(key.name, _digest(key.key.get_secret_value().encode())) for key in settings.all_api_keys()),
        admin_digest=_digest(admin_key.get_secret_value().encode()) if admin_key is not None else None,
        insecure_no_auth=settings.insecure_no_auth,
        allowed_hosts=frozenset(host.lower() for host in settings.allowed_hosts),
        cors_origins=_origins_pattern(settings.cors_origins),
        rates=RateLimits(settings.rate_limit_requests_per_minute, settings.rate_limit_tokens_per_minute),
    )


class Guard:
    """The middleware between the exchange and the app."""

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._max_body_bytes = bounds.max_body_bytes
        self._bodies = Bodies(bounds.max_body_bytes, bounds.body_timeout_seconds)
        self._rates = Rates()
        self._origins: re.Pattern[str] | None = None
        self._with_cors: ASGIApp = self._admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        rules = _rules_of(scope)
        try:
            check_origin(rules, scope)
            check_host(rules, scope)
        except ServerError as exc:
            return await _answer_error(exc, scope, receive, send)
        if rules.cors_origins != self._origins:  # the settings were reloaded
            self._origins, self._with_cors = rules.cors_origins, _with_cors(self._admit, rules.cors_origins)
        return await self._with_cors(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        rules, rate, body = _rules_of(scope), None, None
        try:
            check_key(rules, scope)
            rate = self._rates.of(rules.rates, scope)
            if rate is not None:
                send = rate.adding_headers(send)
                rate.charge()
            if has_body(scope):
                check_size(scope, self._max_body_bytes)
                body = await self._bodies.read(receive)
                receive = replaying(body, receive)
        except ClientDisconnected:
            return None
        except ServerError as exc:
            return await _answer_error(exc, scope, receive, send)
        try:
            await self._app(scope, receive, send)
        finally:
            self._bodies.release(body)
            if rate is not None:
                rate.charge_tokens()


async def _answer_error(error: ServerError, scope: Scope, receive: Receive, send: Send) -> None:
    """Closes the connection after the answer if the client still sends a body, which the server does not read."""
    exchange = scope["state"]["exchange"]
    exchange.error = error
    reply = protocol_of(scope).error(error, exchange.request_id)
    challenge = CHALLENGE if isinstance(error, NotAuthorized) else {}
    closing = {"connection": "close"} if has_body(scope) else {}
    await JSONResponse(reply.body, reply.status, {**challenge, **reply.headers, **closing})(scope, receive, send)


def _rules_of(scope: Scope) -> GuardRules:
    rules: GuardRules = scope["app"].state.guard
    return rules


def check_origin(rules: GuardRules, scope: Scope) -> None:
    """Browsers send Origin or Sec-Fetch-Site with every unsafe method; other programs send neither."""
    if scope["method"] in SAFE_METHODS:
        return
    origins, hosts = headers(scope, b"origin"), headers(scope, b"host")
    foreign = [origin for origin in origins if not (_is_listed(rules, origin) or _is_own(origin, hosts))]
    is_cross_site = any(site.lower() == "cross-site" for site in headers(scope, b"sec-fetch-site"))
    if not foreign and (origins or not is_cross_site):
        return
    if _known_key(rules, _offered(scope)) is not None:  # a foreign page cannot know a key
        return
    sender = f"the origin {foreign[0][:SHOWN_CHARACTERS]!r}" if foreign else "another site"
    raise OriginNotAllowed(
        f"The server does not accept a {scope['method']} request from a web page of {sender}. Add the page's origin to "
        "MLX_SERVER_CORS_ORIGINS, or send an API key of this server."
    )


def _origins_pattern(entries: Sequence[str]) -> re.Pattern[str] | None:
    patterns = [re.escape(entry).replace(r"\*", ".*") for entry in entries]
    return re.compile("|".join(patterns), re.IGNORECASE) if patterns else None


def _is_listed(rules: GuardRules, origin: str) -> bool:
    return rules.cors_origins is not None and rules.cors_origins.fullmatch(origin) is not None


def _is_own(origin: str, hosts: list[str]) -> bool:
    """Whether a page of `origin` came from this server: its name and port equal the Host header's.

    A missing port is the default of the page's scheme: behind a TLS proxy the server itself sees http only.
    """
    scheme, _, address = origin.lower().partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    if default is None or len(hosts) != 1:
        return False
    page, server = _ADDRESS.fullmatch(address), _ADDRESS.fullmatch(hosts[0].lower())
    if page is None or server is None or page["name"] != server["name"]:
        return False
    return int(page["port"] or default) == int(server["port"] or default)


def _with_cors(app: ASGIApp, origins: re.Pattern[str] | None) -> ASGIApp:
    """CORS without credentials: the server uses no cookies, and a page sends its key in a header."""
    if origins is None:
        return app
    return CORSMiddleware(
        app,
        allow_origin_regex=origins,  # type: ignore[arg-type]  # re.compile accepts a compiled pattern
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )


def check_host(rules: GuardRules, scope: Scope) -> None:
    """An HTTP/1.0 client may omit the Host header; browsers never do."""
    server = scope.get("server")  # the local address of the connection; in-process clients have only a name
    on_loopback = server is not None and is_loopback(server[0])
    if "*" in rules.allowed_hosts or not (on_loopback or rules.allowed_hosts):
        return
    hosts = headers(scope, b"host")
    if not hosts and scope["http_version"] == "1.0":
        return
    name = _name_of(hosts[0]) if len(hosts) == 1 else ""
    if name in rules.allowed_hosts or (on_loopback and (name in LOCAL_NAMES or is_loopback(name))):
        return
    named = ", ".join(hosts)[:SHOWN_CHARACTERS]
    raise HostNotAllowed(
        f"The Host header {named!r} is not a name of this server. Use 127.0.0.1 or localhost, "
        "or add the name to MLX_SERVER_ALLOWED_HOSTS."
    )


def _name_of(host: str) -> str:
    """The host without its port, the brackets of an IPv6 address and a trailing dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


class Access(IntEnum):
    NONE = 0
    USER = 1
    ADMIN = 2


def check_key(rules: GuardRules, scope: Scope) -> None:
    """Stores the `Access` in `scope["state"]` and the key's name in the exchange. Raises NotAuthorized."""
    offered = _offered(scope)
    access, name = _access(rules, scope, offered)
    scope["state"]["access"] = access
    scope["state"]["exchange"].key_name = name
    if access is not Access.NONE or path_of(scope) in OPEN_PATHS or is_page(scope):
        return
    fault = "Unknown API key" if offered else "This server requires an API key"
    raise NotAuthorized(f"{fault}. Send one of its keys as Authorization: Bearer KEY, or as x-api-key: KEY.")


def access_of(request: Request) -> Access:
    access: Access = request.state.access
    return access


async def require_admin(request: Request) -> None:
    """The dependency of the admin endpoints. Raises NotAuthorized or AdminClosed."""
    if access_of(request) is Access.ADMIN:
        return
    if _rules_of(request.scope).admin_digest is not None:
        raise NotAuthorized("This endpoint requires the admin key. Send it as Authorization: Bearer KEY.")
    raise AdminClosed(
        "This endpoint requires an admin key, and none is set. Set MLX_SERVER_ADMIN_KEY, and send that key."
    )


def _access(rules: GuardRules, scope: Scope, offered: list[bytes]) -> tuple[Access, str | None]:
    known = _known_key(rules, offered)
    if known is not None:
        return known
    if rules.keys:
        return Access.NONE, None
    server = scope.get("server")
    from_network = server is not None and is_of_network(server[0])
    is_open = rules.admin_digest is None and (rules.insecure_no_auth or not from_network)
    return Access.ADMIN if is_open else Access.USER, None


def _known_key(rules: GuardRules, offered: list[bytes]) -> tuple[Access, str] | None:
    """Compares all keys, so that the time does not depend on which one matches."""
    digests = [_digest(key) for key in offered]
    is_admin = _matches(rules.admin_digest, digests) if rules.admin_digest is not None else False
    names = [key.name for key in rules.keys if _matches(key.digest, digests)]
    if is_admin:
        return Access.ADMIN, "admin"
    return (Access.USER, names[0]) if names else None


def _matches(digest: bytes, offered: list[bytes]) -> bool:
    return any([secrets.compare_digest(digest, other) for other in offered])  # noqa: C419  no early exit


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _offered(scope: Scope) -> list[bytes]:
    return list(_keys_in(scope["headers"]))


def _keys_in(fields: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in fields:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()
