"""Fixed limits of the server and their reasons. Tests run the server with smaller ones."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits for `create_app` and `serve` that are not settings."""

    max_connections: int = 1024
    """More clients than one machine can serve; each open connection costs a descriptor and about 10 kB."""
    header_timeout_seconds: float = 10
    """A client sends its headers in one or two packets. Slower clients hold connections open on purpose."""
    body_timeout_seconds: float = 30
    """Plus one per 16 KiB received, slower than any network. Also the longest time that a client may not read."""
    max_body_bytes: int = 32 * 2**20
    """Fits the longest prompt (`max_prompt_characters`) with every character written as `\\uXXXX`."""
    max_prompt_characters: int = 4_000_000
    """About a million tokens. Longer prompts exceed context or memory, and tokenising them only takes time."""
    max_messages: int = 10_000
    """Longer chats do not occur; validating so many messages takes 25 ms in a thread."""
    max_tools: int = 1024
    """More descriptions do not fit into a model's context."""
    worker_timeout_seconds: float = 30
    """A worker sends a heartbeat every second, from a thread that a busy engine does not block."""
    step_timeout_seconds: float = 300
    """A chunk of a long prompt takes seconds on the slowest machine; a hanging GPU never ends it."""
    upstream_poll_seconds: float = 10
    """Longest time until a recovered upstream is used again; costs six small requests a minute."""
