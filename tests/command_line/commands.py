"""`mlx-manager` as people and scripts run it: in a process of its own, over pipes or in a terminal."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.running_server import HANG_SECONDS, RunningServer, environment_of_server

MLX_MANAGER = (sys.executable, "-c", "from mlx_manager.cli import main; main()")


def environment(server: RunningServer | None = None, **variables: object) -> dict[str, str]:
    """One in which the settings point to `server`, or to a port where nothing is."""
    settings = {"port": 9 if server is None else server.port}
    return environment_of_server(settings) | {name: str(value) for name, value in variables.items()}


def mlx_manager(
    *arguments: str | Path, server: RunningServer | None = None, stdin: str = "", **variables: object
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*MLX_MANAGER, *map(str, arguments)],
        env=environment(server, **variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


class Terminal:
    """What a command shows in a terminal of its own, and the keys that are typed there."""

    def __init__(self, process: "subprocess.Popen[bytes]", screen: int) -> None:
        self.process = process
        self._screen = screen
        self._seen = ""

    def close(self) -> None:
        """As the user closes the window: the command gets a SIGHUP, and can neither read nor write any more."""
        if self._screen >= 0:
            os.close(self._screen)
            self._screen = -1

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def wait_for(self, text: str) -> str:
        """What came up to and with `text` since the last wait."""
        deadline = time.monotonic() + HANG_SECONDS
        while text not in self._seen:
            readable, _, _ = select.select([self._screen], [], [], max(0, deadline - time.monotonic()))
            assert readable, self._seen
            try:
                self._seen += os.read(self._screen, 2**16).decode("utf-8", "replace")
            except OSError as exc:  # Linux ends a terminal so, when its last program has gone
                raise AssertionError(f"The command ended without showing {text!r}: {self._seen!r}") from exc
        shown, _, self._seen = self._seen.partition(text)
        return shown + text


def _take_terminal() -> None:
    """Makes stdin the controlling terminal, whose hangup counts also where the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.close(os.open(os.ttyname(0), os.O_RDWR))


@contextlib.contextmanager
def in_terminal(*arguments: str | Path, environment: Mapping[str, str]) -> Iterator[Terminal]:
    """The command as the leader of a terminal, so that Ctrl-C reaches it; it must have ended within the block."""
    screen, keyboard = pty.openpty()
    termios.tcsetwinsize(keyboard, (24, 200))
    process = subprocess.Popen(
        [*MLX_MANAGER, *map(str, arguments)],
        env={**environment, "TERM": "xterm"},
        stdin=keyboard,
        stdout=keyboard,
        stderr=keyboard,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(keyboard)
    terminal = Terminal(process, screen)
    try:
        yield terminal
        process.wait(HANG_SECONDS)
    finally:
        process.kill()
        process.wait()
        terminal.close()
