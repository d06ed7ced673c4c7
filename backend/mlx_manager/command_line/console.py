"""Output of the commands: tables, units, JSON and errors. Colour in a terminal, plain columns in a pipe."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from mlx_manager.streams import open_closed_streams
from mlx_manager.utf8 import is_utf8, shown

ABSENT = "-"
FAILURE = 1
USAGE = 2
_OUTPUT_LOST = {errno.EPIPE, errno.ENOSPC, errno.EIO}
_UNITS = ("B", "KB", "MB", "GB", "TB")
_STYLES = {"yes": "green", "no": "red", "ok": "green", "warning": "yellow", "broken": "bold red"}
"""The style of a cell with this text in a terminal."""


class CommandFailed(Exception):
    """Ends the command with `exit_code` and one message on stderr: the problem and the remedy."""

    def __init__(self, message: str, exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(command: Callable[[], None]) -> None:
    """Runs the command. CommandFailed ends the process with its message on stderr."""
    try:
        command()
    except CommandFailed as exc:
        print(f"Error: {exc}", file=sys.stderr)
        raise SystemExit(exc.exit_code) from exc
    except Exception as exc:
        from mlx_manager.mlx_server.config import InvalidSettings

        if not isinstance(exc, InvalidSettings):
            raise
        print(exc, file=sys.stderr)
        raise SystemExit(USAGE) from exc


@contextlib.contextmanager
def whole_output() -> Iterator[None]:
    """Checks the arguments of a command, and flushes its output.

    Exits with status 2 if an argument is not UTF-8, and with 1 if the output cannot be written.
    """
    open_closed_streams()
    for number, argument in enumerate(sys.argv[1:], 1):
        if not is_utf8(argument):
            print(f"Error: argument {number} is not UTF-8: {shown(argument)}", file=sys.stderr)
            raise SystemExit(USAGE)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as exc:
        if exc.errno not in _OUTPUT_LOST:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of the process
        if not isinstance(exc, BrokenPipeError):
            print(f"Error: the output cannot be written: {exc.strerror}", file=sys.stderr)
        raise SystemExit(FAILURE) from exc


def note(text: str) -> None:
    """Prints a remark to stderr, so that stdout has only the result."""
    print(text, file=sys.stderr)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not sys.stdout.isatty():
        _print_plain(columns, rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(table)


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def format_bytes(count: float | None) -> str:
    """In units of 1024, like the server's settings."""
    if count is None:
        return ABSENT
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_UNITS[unit]}"


def format_flag(flag: bool | None) -> str:
    return ABSENT if flag is None else "yes" if flag else "no"


def format_number(number: float | None, digits: int = 0) -> str:
    return ABSENT if number is None else f"{number:,.{digits}f}"
