"""Names that are not settings: what became of those that were, and the right name for a near miss."""

import difflib
from collections.abc import Callable, Sequence

from mlx_manager.mlx_server.bounds import Bounds

_BOUNDS = Bounds()
_FORMER = {
    "max_body_mb": f"the server reads bodies of {_BOUNDS.max_body_bytes // 2**20} MB",
    "max_json_depth": "a body may be nested 256 deep",
    "header_timeout_seconds": f"headers have {_BOUNDS.header_timeout_seconds} s to arrive",
    "body_timeout_seconds": f"a body has {_BOUNDS.body_timeout_seconds} s to arrive, and one more for each 16 KiB",
    "max_connections": f"{_BOUNDS.max_connections} connections may be open",
    "max_messages": f"a request may have {_BOUNDS.max_messages} messages",
    "max_tools": f"a request may have {_BOUNDS.max_tools} tools",
    "max_prompt_characters": f"a prompt may have {_BOUNDS.max_prompt_characters} characters",
    "worker_timeout_seconds": f"a worker is replaced after {_BOUNDS.worker_timeout_seconds} s without a heartbeat",
    "step_timeout_seconds": f"a worker is replaced after {_BOUNDS.step_timeout_seconds} s in one step",
    "upstream_poll_seconds": f"upstreams are asked every {_BOUNDS.upstream_poll_seconds} s",
    "strip_billing_line": "the billing line is always left out of prompts",
    "strip_token_counter": "token counters are always left out of prompts",
}
"""Settings of earlier versions, and what holds in their place."""


def what_instead(name: str, known: Sequence[str], write: Callable[[str], str] = str, prefix: str = "") -> str:
    """What to say of `name`, which is not in `known`. A suggestion stands behind `prefix`, as `write` writes it."""
    if name in _FORMER:
        return f"the setting was removed, and {_FORMER[name]}. Leave it out."
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"there is no such setting. Did you mean {prefix}{write(near[0])}?"
    return "there is no such setting. docs/settings.md lists all."
