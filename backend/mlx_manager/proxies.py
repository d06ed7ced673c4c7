"""Which servers are asked through a proxy that the environment names: those of other machines, never this one."""

import ipaddress
import os
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class UnusableProxy(Exception):
    """The environment names a proxy that no client can be made for. The message says why, and what to do."""


def client_for(url: str, make: Callable[..., T], **options: object) -> T:
    """An httpx client, made by `make` with `options`, for the server at `url`. Raises UnusableProxy."""
    from httpx import InvalidURL  # slow: a server without upstreams does without it

    try:
        return make(trust_env=not is_this_machine(url), **options)
    except (ImportError, ValueError, InvalidURL) as exc:
        raise unusable(exc) from exc


def is_this_machine(url: str) -> bool:
    name = (urlsplit(url).hostname or "").removesuffix(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped if mapped is not None else address).is_loopback or address.is_unspecified


def unusable(exc: Exception) -> UnusableProxy:
    """`exc` is what an HTTP client raises when it is made, or first used."""
    named = [name for name in os.environ if name.upper() in VARIABLES]  # their values may hold a password
    remedy = "install socksio (pip install 'httpx[socks]'), or " if isinstance(exc, ImportError) else ""
    reason = "SOCKS needs the package socksio" if isinstance(exc, ImportError) else str(exc)
    return UnusableProxy(
        f"The proxy of the environment ({', '.join(named)}) cannot be used: {reason}. To go on, {remedy}"
        "unset the variable, or name the server in NO_PROXY."
    )


def forget_proxies() -> None:
    """For a process that asks this machine alone from now on, by a library that makes its own clients."""
    for name in [name for name in os.environ if name.upper() in VARIABLES]:
        del os.environ[name]
