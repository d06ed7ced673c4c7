"""Detects that the terminal in which the server was started has closed."""

import os
import signal
from collections.abc import Callable


def terminal_watch() -> Callable[[], bool]:
    """Returns a function that tells whether this process's current terminal has closed since.

    The function always returns False without a terminal, or with SIGHUP ignored (nohup).
    """
    outlives = not _has_terminal() or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return lambda: not outlives and not _has_terminal()


def _has_terminal() -> bool:
    """False for a process without a controlling terminal, or whose terminal was closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:
        return False
    return True
