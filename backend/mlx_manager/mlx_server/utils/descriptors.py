"""The limit on open files and sockets of this process."""

import contextlib
import resource
from collections.abc import Iterator

_RESERVED = 512
"""Descriptors for models, workers, upstreams and logs."""


def descriptors_for(connections: int) -> int:
    """The limit that a server of so many connections raises its own to."""
    return connections + _RESERVED


def raise_descriptor_limit(connections: int) -> int | None:
    """Raises the limit for `connections`. Returns None, or the number of connections possible where it is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = descriptors_for(connections)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return None
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    except (OSError, ValueError):  # macOS has another limit below the hard limit
        allowed = soft
    return max(allowed - _RESERVED, 0) if allowed < wanted else None


@contextlib.contextmanager
def own_descriptor_limit() -> Iterator[None]:
    """Keeps the limit as it is within the block, for the import of mlx-lm, which sets it to (2048, 4096).

    That fails where the hard limit is lower, and undoes `raise_descriptor_limit`.
    """
    set_limit = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = set_limit
