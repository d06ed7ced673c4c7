"""HTTP clients that use the proxies of the environment for other machines, never for this one."""

import ipaddress
import os
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class UnusableProxy(Exception):
    """A proxy of the environment is unusable. The message says why, and what to do."""


def client_for(url: str, make: Callable[..., T], **options: object) -> T:
    """An httpx client for the server at `url`, created by `make` with `options`. Raises UnusableProxy."""
    from httpx import InvalidURL  # slow, and not needed without upstreams

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
    """The error for `exc`, which an HTTP client raised when it was created or first used."""
    named = [name for name in os.environ if name.upper() in VARIABLES]  # their values may contain a password
    remedy = "Install socksio (pip install 'httpx[socks]'), unset" if isinstance(exc, ImportError) else "Unset"
    reason = "SOCKS needs the package socksio" if isinstance(exc, ImportError) else str(exc)
    return UnusableProxy(
        f"The proxy of the environment ({', '.join(named)}) cannot be used: {reason}. {remedy} "
        "the variable, or add the server to NO_PROXY."
    )


def forget_proxies() -> None:
    """Removes the proxies from the environment of a process that connects to this machine only."""
    for name in [name for name in os.environ if name.upper() in VARIABLES]:
        del os.environ[name]
