"""The standard streams of a process, some of which may be closed at its start."""

import contextlib
import os
import sys


def open_closed_streams() -> None:
    """Replaces closed streams by /dev/null. Otherwise a socket would get their numbers, and `print` would fail.

    Characters that a stream cannot encode are written as escapes.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # replaced by a program that embeds the command
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
