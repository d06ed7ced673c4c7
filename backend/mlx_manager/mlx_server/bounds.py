"""What the server bounds without a setting, and why so. Tests run the server with smaller bounds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of `create_app` and `serve`; the settings have what a user chooses."""

    max_connections: int = 1024
    """More clients than one machine generates for; each open connection costs a descriptor and some 10 kB."""
    header_timeout_seconds: float = 10
    """A client sends its headers in one packet or two. Slower ones hold connections open on purpose."""
    body_timeout_seconds: float = 30
    """To begin with; each 16 KiB gives a second more, and no line is so slow. A client may stop reading for as long."""
    max_body_bytes: int = 32 * 2**20
    """Holds the longest prompt (`max_prompt_characters`) with every character written as `\\uXXXX`."""
    max_prompt_characters: int = 4_000_000
    """About a million tokens. To tokenise more only takes time before context or memory refuse it."""
    max_messages: int = 10_000
    """Longer chats do not occur; to validate so many takes 25 ms, in a thread."""
    max_tools: int = 1024
    """A model's context does not hold the descriptions of more."""
    worker_timeout_seconds: float = 30
    """A worker's heartbeat comes every second, from a thread that a busy engine does not stop."""
    step_timeout_seconds: float = 300
    """A chunk of a long prompt takes seconds on the slowest machine. A GPU that hangs takes for ever."""
    upstream_poll_seconds: float = 10
    """How soon an upstream that has come back serves again; it costs six small requests a minute."""
