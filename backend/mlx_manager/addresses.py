"""Checks server addresses and API keys before use. Makes no requests."""

import functools
import ipaddress
import re
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr


def server_root(base_url: str) -> str:
    """`base_url` without a trailing `/v1`. Raises ValueError if it is not a usable address."""
    try:
        parts = urlsplit(base_url.strip())
        is_address = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
    except ValueError:  # an invalid port or IPv6 address
        is_address = False
    shown = without_credentials(base_url)
    if not is_address:
        raise ValueError(f"{shown!r} is not the address of a server. Use one such as http://localhost:8080/v1.")
    if "@" in parts.netloc:  # httpx logs every URL
        raise ValueError(f"{shown!r} contains a user name and password. Remove them, and use an API key.")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def without_credentials(url: str) -> str:
    return re.sub(r"(?<=//)[^/]*@", "", url)


def header_key(key: SecretStr | None) -> SecretStr | None:
    """The stripped key, or None for an empty one. Raises ValueError, which does not contain the key."""
    if key is None:
        return None
    stripped = key.get_secret_value().strip()
    if not (stripped.isascii() and stripped.isprintable()):
        raise ValueError("the key contains characters that are invalid in an HTTP header. Use printable ASCII.")
    return SecretStr(stripped) if stripped else None


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address. False for a name."""
    address = _address(host)
    return address is not None and address.is_loopback


def is_of_network(host: str) -> bool:
    """Whether `host` is an address that other machines may reach. False for a name."""
    address = _address(host)
    return address is not None and not address.is_loopback


@functools.lru_cache(maxsize=64)
def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped if mapped is not None else address
