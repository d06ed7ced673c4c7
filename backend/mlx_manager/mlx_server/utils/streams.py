"""The standard streams of a process, which may have been started with some of them closed."""

import contextlib
import os
import sys


def open_closed_streams() -> None:
    """Puts /dev/null in place of closed ones: a socket would take their numbers, and `print` would find no stream.

    What the streams cannot encode is written as an escape.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a program that embeds the command has put its own there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
