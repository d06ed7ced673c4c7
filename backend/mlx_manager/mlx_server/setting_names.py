"""Hints for unknown setting names: removed settings and misspelt names. Reads no settings."""

import difflib
from collections.abc import Callable, Sequence

from mlx_manager.mlx_server.bounds import Bounds

_BOUNDS = Bounds()
_REMOVED = {
    "max_body_mb": f"the server reads bodies of {_BOUNDS.max_body_bytes // 2**20} MB",
    "max_json_depth": "a body may be nested 256 levels deep",
    "header_timeout_seconds": f"the limit for headers is {_BOUNDS.header_timeout_seconds} s",
    "body_timeout_seconds": f"the limit for a body is {_BOUNDS.body_timeout_seconds} s, plus one per 16 KiB",
    "max_connections": f"{_BOUNDS.max_connections} connections may be open",
    "max_messages": f"a request may have {_BOUNDS.max_messages} messages",
    "max_tools": f"a request may have {_BOUNDS.max_tools} tools",
    "max_prompt_characters": f"a prompt may have {_BOUNDS.max_prompt_characters} characters",
    "worker_timeout_seconds": f"a worker is replaced after {_BOUNDS.worker_timeout_seconds} s without a heartbeat",
    "step_timeout_seconds": f"a worker is replaced after {_BOUNDS.step_timeout_seconds} s in one step",
    "upstream_poll_seconds": f"upstreams are checked every {_BOUNDS.upstream_poll_seconds} s",
    "strip_billing_line": "prompts never contain the billing line",
    "strip_token_counter": "prompts never contain token counters",
}
"""Removed settings, and the fixed value of each."""


def hint_for(name: str, known: Sequence[str], write: Callable[[str], str] = str, prefix: str = "") -> str:
    """The hint for `name`, which is not in `known`. A suggested name gets `prefix` and is formatted by `write`."""
    if name in _REMOVED:
        return f"the setting was removed, and {_REMOVED[name]}. Remove it."
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"there is no such setting. Did you mean {prefix}{write(near[0])}?"
    return "there is no such setting. See docs/settings.md for all settings."
