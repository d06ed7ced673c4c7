"""The Host header must name this server.

A web page anywhere can have its own name point to 127.0.0.1 (DNS rebinding), and is then of one origin with a server
there: the name in the Host header is what tells such a request from an honest one.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_manager.mlx_server.api.edge.refusals import refuse
from mlx_manager.mlx_server.api.edge.rules import EdgeRules, is_loopback, rules_of
from mlx_manager.mlx_server.errors import HostNotAllowed

SHOWN_CHARACTERS = 100


class HostCheck:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            if not _may_pass(rules_of(scope), scope, hosts):
                return await refuse(_refusal(hosts), scope, receive, send)
        return await self._app(scope, receive, send)


def _may_pass(rules: EdgeRules, scope: Scope, hosts: list[str]) -> bool:
    """A client of HTTP/1.0 may leave the header out; browsers never do."""
    on_loopback = _connected_over_loopback(scope)
    if "*" in rules.allowed_hosts or not (on_loopback or rules.allowed_hosts):
        return True
    if len(hosts) != 1:
        return not hosts and scope["http_version"] == "1.0"
    name = _name_of(hosts[0])
    return name in rules.allowed_hosts or (on_loopback and (name == "localhost" or is_loopback(name)))


def _connected_over_loopback(scope: Scope) -> bool:
    """By the address that the connection came in at; a client within the process has none that is an address."""
    server = scope.get("server")
    return server is not None and is_loopback(server[0])


def _name_of(host: str) -> str:
    """Without the port, the brackets of an IPv6 address, and the dot that may end a name."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _refusal(hosts: list[str]) -> HostNotAllowed:
    named = ", ".join(hosts)[:SHOWN_CHARACTERS]
    return HostNotAllowed(
        f"The Host header {named!r} is not a name of this server: ask for 127.0.0.1 or localhost, "
        "or let the name in with MLX_SERVER_ALLOWED_HOSTS."
    )
