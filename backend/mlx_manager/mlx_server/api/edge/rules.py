"""What the edge asks of requests, made of the settings. One object on `app.state.edge`, replaced whole on a reload."""

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Scope

from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.protocols.base import Endpoint, Protocols


@dataclass(frozen=True, slots=True)
class KnownKey:
    """Digests are compared, so that not even a key's length takes its time."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class EdgeRules:
    keys: tuple[KnownKey, ...]
    admin_digest: bytes | None
    insecure_no_auth: bool
    allowed_hosts: frozenset[str]
    cors_origins: re.Pattern[str] | None
    """Of the web pages that may ask."""
    requests_per_minute: int
    tokens_per_minute: int


def edge_rules(settings: MLXServerSettings) -> EdgeRules:
    """Raises ValueError when the file with the keys cannot be read."""
    admin_key = settings.admin_key
    return EdgeRules(
        keys=tuple(
            KnownKey(key.name, digest_of(key.key.get_secret_value().encode())) for key in settings.all_api_keys()
        ),
        admin_digest=digest_of(admin_key.get_secret_value().encode()) if admin_key is not None else None,
        insecure_no_auth=settings.insecure_no_auth,
        allowed_hosts=frozenset(host.lower() for host in settings.allowed_hosts),
        cors_origins=_origins_pattern(settings.cors_origins),
        requests_per_minute=settings.rate_limit_requests_per_minute,
        tokens_per_minute=settings.rate_limit_tokens_per_minute,
    )


def _origins_pattern(entries: Sequence[str]) -> re.Pattern[str] | None:
    patterns = [re.escape(entry).replace(r"\*", ".*") for entry in entries]
    return re.compile("|".join(patterns), re.IGNORECASE) if patterns else None


def rules_of(scope: Scope) -> EdgeRules:
    rules: EdgeRules = scope["app"].state.edge
    return rules


def path_of(scope: Scope) -> str:
    """As the routes see it, wherever the app is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def protocols_of(scope: Scope) -> Protocols:
    protocols: Protocols = scope["app"].state.protocols
    return protocols


def protocol_of(scope: Scope) -> Endpoint:
    """The protocol that answers the request, refusals included."""
    return protocols_of(scope).of(path_of(scope), scope["headers"])


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def is_loopback(host: str) -> bool:
    """Whether `host` is an address that other machines cannot reach. A name is none."""
    address = _address(host)
    return address is not None and address.is_loopback


def is_of_network(host: str) -> bool:
    """Whether `host` is an address that other machines may reach. A name is none."""
    address = _address(host)
    return address is not None and not address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped if mapped is not None else address
