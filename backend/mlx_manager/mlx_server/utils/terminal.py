"""The terminal that a server was started in, whose window may be closed."""

import os
import signal
from collections.abc import Callable


def terminal_watch() -> Callable[[], bool]:
    """Tells whether the terminal that this process has now has been closed since.

    Never, where it has none, or is told to outlive it (nohup).
    """
    outlives = not _has_terminal() or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return lambda: not outlives and not _has_terminal()


def _has_terminal() -> bool:
    """A process whose terminal was closed has none any more."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:
        return False
    return True
