"""Opens the listening sockets, and checks that other machines can connect only with API keys."""

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
    """Listens on every address of `host`, or on all interfaces if it is empty. Raises OSError."""
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as exc:  # a label is empty or too long
        raise OSError(errno.EINVAL, "invalid host name") from exc
    listeners: list[socket.socket] = []
    for family, _, _, _, address in dict.fromkeys(addresses):
        try:
            listeners.append(socket.create_server(address, family=family, backlog=BACKLOG))
        except OSError as exc:
            is_last = not listeners and address == addresses[-1][4]
            if exc.errno != errno.EADDRNOTAVAIL or is_last:  # tolerate IPv6 addresses on machines without IPv6
                raise
    return listeners


def addresses_of(listeners: Sequence[socket.socket]) -> list[str]:
    """The addresses of the sockets, sorted."""
    return sorted({listener.getsockname()[0] for listener in listeners})


def why_too_open(settings: MLXServerSettings, addresses: Sequence[str]) -> str | None:
    """Why the server must not listen at these addresses. None if it may."""
    exposed = [address for address in addresses if not is_loopback(address)]
    if not exposed or settings.all_api_keys() or settings.insecure_no_auth:
        return None
    return (
        f"Refused to listen on {exposed[0]} without API keys: anyone who can reach this machine could use the server. "
        "Set MLX_SERVER_API_KEYS or MLX_SERVER_API_KEYS_FILE, or pass --insecure-no-auth to allow this."
    )


def warn_if_exposed(settings: MLXServerSettings, addresses: Sequence[str]) -> None:
    """Warns of settings that are allowed but dangerous."""
    exposed = [address for address in addresses if not is_loopback(address)]
    if exposed and not settings.all_api_keys():
        logger.warning(
            "NO AUTHENTICATION: anyone who can reach %s can use this server, including /admin. "
            "Set MLX_SERVER_API_KEYS and remove --insecure-no-auth to require keys.",
            exposed[0],
        )
    file = settings.api_keys_file
    if file is not None and is_readable_by_all(file):
        logger.warning("Every user of this machine can read the keys in %s. Run chmod 600 on it.", file)
