"""How many files and sockets the process may have open."""

import contextlib
import resource
from collections.abc import Iterator

_RESERVED = 512
"""Of models, workers, upstreams, logs."""


def raise_descriptor_limit(connections: int) -> int | None:
    """Makes room for so many connections, where the system lets it; else how many there is room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _RESERVED
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return None
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    except (OSError, ValueError):  # macOS has a limit of its own below the hard one
        allowed = soft
    return max(allowed - _RESERVED, 0) if allowed < wanted else None


@contextlib.contextmanager
def own_descriptor_limit() -> Iterator[None]:
    """For the import of mlx-lm, which sets the limit to (2048, 4096): that fails where the hard limit is lower, and
    takes back what `raise_descriptor_limit` has raised. Within the block the limit stays as it is.
    """
    set_limit = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = set_limit
