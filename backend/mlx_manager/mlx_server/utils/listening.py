"""The sockets that the server listens on, and whether it may: beyond this machine with API keys only."""

import errno
import logging
import socket
from collections.abc import Sequence

from mlx_manager.addresses import is_loopback
from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.security_settings import is_readable_by_all

logger = logging.getLogger(__name__)

BACKLOG = 2048


def listen(host: str, port: int) -> list[socket.socket]:
    """On every address that `host` stands for; on all of the machine's where it is empty. Raises OSError."""
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as exc:  # a part of it is empty, or too long
        raise OSError(errno.EINVAL, "This is no name of a host") from exc
    listeners: list[socket.socket] = []
    for family, _, _, _, address in dict.fromkeys(addresses):
        try:
            listeners.append(socket.create_server(address, family=family, backlog=BACKLOG))
        except OSError as exc:
            is_last = not listeners and address == addresses[-1][4]
            if exc.errno != errno.EADDRNOTAVAIL or is_last:  # an IPv6 address, where there is no IPv6, may fail
                raise
    return listeners


def addresses_of(listeners: Sequence[socket.socket]) -> list[str]:
    """What the host's name stands for."""
    return sorted({listener.getsockname()[0] for listener in listeners})


def why_too_open(settings: MLXServerSettings, addresses: Sequence[str]) -> str | None:
    """None when the server may listen at these addresses."""
    exposed = [address for address in addresses if not is_loopback(address)]
    if not exposed or settings.all_api_keys() or settings.insecure_no_auth:
        return None
    return (
        f"Refused to listen on {exposed[0]} without API keys: everybody who reaches this machine could use the server. "
        "Set MLX_SERVER_API_KEYS or MLX_SERVER_API_KEYS_FILE, or give --insecure-no-auth if this is meant."
    )


def warn_if_exposed(settings: MLXServerSettings, addresses: Sequence[str]) -> None:
    """Of what is allowed and still dangerous."""
    exposed = [address for address in addresses if not is_loopback(address)]
    if exposed and not settings.all_api_keys():
        logger.warning(
            "NO AUTHENTICATION: everybody who reaches %s can use this server, its /admin included, "
            "for it runs with --insecure-no-auth and without API keys.",
            exposed[0],
        )
    file = settings.api_keys_file
    if file is not None and is_readable_by_all(file):
        logger.warning("Every user of this machine can read the keys in %s: chmod 600 it", file)
