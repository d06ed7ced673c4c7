"""Addresses of servers and the keys for them, checked before anything is asked. Asks nothing itself."""

import functools
import ipaddress
import re
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr


def server_root(base_url: str) -> str:
    """`base_url` without the `/v1` at its end, where there is one. Raises ValueError when it cannot be used."""
    try:
        parts = urlsplit(base_url.strip())
        is_address = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        is_address = False
    shown = without_credentials(base_url)
    if not is_address:
        raise ValueError(f"{shown!r} is not the address of a server: give one like http://localhost:8080/v1")
    if "@" in parts.netloc:  # httpx writes every address that it asks into its log
        raise ValueError(f"{shown!r} has a name and password before its host: give a key instead")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def without_credentials(url: str) -> str:
    return re.sub(r"(?<=//)[^/]*@", "", url)


def header_key(key: SecretStr | None) -> SecretStr | None:
    """The key as a header carries it; None for an empty one. Raises ValueError, which does not name the key."""
    if key is None:
        return None
    stripped = key.get_secret_value().strip()
    if not (stripped.isascii() and stripped.isprintable()):
        raise ValueError("the key holds characters that an HTTP header cannot carry: use printable ASCII")
    return SecretStr(stripped) if stripped else None


def is_loopback(host: str) -> bool:
    """Whether `host` is an address that other machines cannot reach. A name is not an address."""
    address = _address(host)
    return address is not None and address.is_loopback


def is_of_network(host: str) -> bool:
    """Whether `host` is an address that other machines may reach. A name is not an address."""
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
