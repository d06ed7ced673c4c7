"""What the server bounds without a setting, and why so. Tests run the server with smaller bounds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of `create_app` and `serve`; the settings have what a user chooses."""

    max_connections: int = 1024
    """More clients than one machine generates for; each open connection costs a descriptor and some 10 kB."""
    header_timeout_seconds: float = 10
    """A client sends all headers in one packet or two; a connection that brings none in time is a slow attack."""
    body_timeout_seconds: float = 30
    """To begin with, and a second more for each 16 KiB, slower than any line. A client may stop reading for as long."""
    max_body_bytes: int = 32 * 2**20
    """Holds the longest prompt (`max_prompt_characters`) with every character written as `\\uXXXX`."""
    max_prompt_characters: int = 4_000_000
    """A million tokens: more than any model's context. Tokenising more only takes time before the refusal."""
    max_messages: int = 10_000
    """A chat of the largest context has fewer; each costs 20 us to validate."""
    max_tools: int = 1024
    """A model's context does not hold the descriptions of more."""
    worker_timeout_seconds: float = 30
    """A worker's heartbeat comes every second, from a thread that a busy engine does not stop."""
    step_timeout_seconds: float = 300
    """A chunk of a long prompt takes seconds on the slowest machine. A GPU that hangs takes for ever."""
    upstream_poll_seconds: float = 10
    """An upstream that has come back serves again so soon, for 6 small requests a minute."""
