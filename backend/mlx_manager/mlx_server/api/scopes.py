"""Reads an ASGI scope for every layer of the API: its path, its protocol, its headers. Reads no bodies."""

from starlette.types import Scope

from mlx_manager.mlx_server.protocols.base import Endpoint, Protocols


def path_of(scope: Scope) -> str:
    """The path without the prefix under which the app is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def protocols_of(scope: Scope) -> Protocols:
    protocols: Protocols = scope["app"].state.protocols
    return protocols


def protocol_of(scope: Scope) -> Endpoint:
    """The protocol in which the request is answered, errors included."""
    return protocols_of(scope).of(path_of(scope), scope["headers"])


def header(scope: Scope, name: bytes) -> bytes:
    """The first header of that name, or b""."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]


def has_body(scope: Scope) -> bool:
    return header(scope, b"content-length") not in (b"", b"0") or header(scope, b"transfer-encoding") != b""


def is_json(scope: Scope) -> bool:
    """Whether to read the body as JSON: also without a content type, or with curl's default one."""
    given = header(scope, b"content-type")
    kind = given.partition(b";")[0].strip().lower()
    return (
        given == b""
        or kind in (b"application/json", b"application/x-www-form-urlencoded")
        or (kind.startswith(b"application/") and kind.endswith(b"+json"))
    )
