"""Standard streams that are closed, full or without a reader, and bytes that are not UTF-8: no tracebacks."""

import subprocess
from pathlib import Path

import pytest

from tests.command_line.commands import MLX_MANAGER, environment
from tests.running_server import HANG_SECONDS, RunningServer


def shell(script: str, server: RunningServer | None = None) -> "subprocess.CompletedProcess[bytes]":
    """`"$@"` in the script is mlx-manager."""
    ran = subprocess.run(
        ["bash", "-c", script, "bash", *MLX_MANAGER], env=environment(server), capture_output=True, timeout=HANG_SECONDS
    )
    assert b"Traceback" not in ran.stderr, ran.stderr
    assert b"Exception ignored" not in ran.stderr, ran.stderr
    return ran


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_command_runs_with_closed_streams(server: RunningServer, closed: str) -> None:
    for command in ("ps", "models", "doctor"):
        assert shell(f'"$@" {command} {closed}', server).returncode == 0


def test_command_whose_reader_has_gone_ends_quietly(server: RunningServer) -> None:
    ran = shell('"$@" models | true; "$@" models --json | head -n 1', server)
    assert (ran.stdout, ran.stderr) == (b"[\n", b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_cannot_be_written_is_an_error(server: RunningServer) -> None:
    ran = shell('"$@" models > /dev/full', server)
    assert (ran.returncode, ran.stderr) == (1, b"Error: the output cannot be written: No space left on device\n")


def test_output_is_escaped_where_the_locale_cannot_show_it(server: RunningServer) -> None:
    ran = shell('LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@" models', server)
    assert ran.returncode == 0


def test_message_that_is_not_utf_8_is_an_error(server: RunningServer) -> None:
    ran = shell("printf 'Hi \\377' | \"$@\" chat demo", server)
    assert (ran.returncode, ran.stderr) == (1, b"Error: The message is not UTF-8: byte 4 is 0xff. Convert it.\n")


@pytest.mark.parametrize("command", ["chat", "serve", "pull", "models --base-url", "chat demo --system"])
def test_argument_that_is_not_utf_8_is_an_error(command: str) -> None:
    ran = shell(f"\"$@\" {command} $'a\\xff' < /dev/null")
    number = len(command.split()) + 1
    assert (ran.returncode, ran.stderr) == (2, f"Error: argument {number} is not UTF-8: a\\udcff\n".encode())


def test_message_with_a_byte_order_mark_is_read(server: RunningServer) -> None:
    ran = shell("printf '\\357\\273\\277Count to 3' | \"$@\" chat demo", server)
    assert ran.stdout == b"1, 2, 3\n"
