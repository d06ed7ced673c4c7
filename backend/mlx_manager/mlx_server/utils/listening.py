"""The sockets that the server listens on."""

import errno
import socket

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
            is_last_hope = not listeners and address == addresses[-1][4]
            if exc.errno != errno.EADDRNOTAVAIL or is_last_hope:  # an IPv6 address, where there is no IPv6, may fail
                raise
    return listeners
