"""systemd and launchd: where each wants a service's file, and the commands that start, show and end the service."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from mlx_manager.command_line.console import CommandFailed
from mlx_manager.command_line.service_files import LABEL, NAME, Scope, Service, launchd_plist, systemd_unit

System = Literal["linux", "macos"]
POLL_SECONDS = 0.2


class ServiceManager(Protocol):
    @property
    def file(self) -> Path:
        """Where the service manager expects the description."""

    def text(self, service: Service) -> str:
        """The description in the manager's format."""

    def start(self) -> None:
        """Starts the service from its file, now and at each boot or login. Restarts a running one."""

    def stop(self) -> None:
        """Drains and ends the service, for good."""

    def forget(self) -> None:
        """Called after the file is deleted."""

    def is_active(self) -> bool:
        """Prints the manager's report as well."""

    def show_log(self, log: Path, lines: int, follow: bool) -> None: ...


def this_system() -> System:
    return "macos" if sys.platform == "darwin" else "linux"


def manager_for(system: System, scope: Scope) -> ServiceManager:
    return Launchd(scope) if system == "macos" else Systemd(scope)


class Systemd:
    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._flags = ["--user"] if scope == "user" else []

    @property
    def file(self) -> Path:
        folder = config_home() / "systemd/user" if self._scope == "user" else Path("/etc/systemd/system")
        return folder / f"{NAME}.service"

    def text(self, service: Service) -> str:
        return systemd_unit(service)

    def start(self) -> None:
        self._control("daemon-reload")
        self._control("enable", NAME)
        self._control("restart", NAME)

    def stop(self) -> None:
        self._control("disable", "--now", NAME)

    def forget(self) -> None:
        self._control("daemon-reload")

    def is_active(self) -> bool:
        return call(["systemctl", *self._flags, "--no-pager", "status", NAME]) == 0

    def show_log(self, log: Path, lines: int, follow: bool) -> None:
        call(["journalctl", *self._flags, "--unit", NAME, "--lines", str(lines), *(["--follow"] if follow else [])])

    def _control(self, *words: str) -> None:
        check(["systemctl", *self._flags, *words])


class Launchd:
    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    @property
    def file(self) -> Path:
        folder = Path.home() / "Library/LaunchAgents" if self._scope == "user" else Path("/Library/LaunchDaemons")
        return folder / f"{LABEL}.plist"

    def text(self, service: Service) -> str:
        return launchd_plist(service)

    def start(self) -> None:
        if self._is_loaded():
            self.stop()
        check(["launchctl", "bootstrap", self._domain(), str(self.file)])

    def stop(self) -> None:
        """bootout may return before the job has ended, and bootstrap fails until then."""
        if self._is_loaded():
            check(["launchctl", "bootout", self._job()])
        while self._is_loaded():  # at most ExitTimeOut
            time.sleep(POLL_SECONDS)

    def forget(self) -> None:
        pass  # launchd keeps nothing of a job that was booted out

    def is_active(self) -> bool:
        """launchd also knows a job that it has given up starting; its report names the process of a running one."""
        ran = subprocess.run(_found(["launchctl", "print", self._job()]), capture_output=True, text=True, check=False)
        print(ran.stdout + ran.stderr, end="")
        return ran.returncode == 0 and "state = running" in ran.stdout

    def show_log(self, log: Path, lines: int, follow: bool) -> None:
        if not log.exists():
            raise CommandFailed(f"There is no log at {log}. Run `mlx-manager service status`.")
        call(["tail", "-n", str(lines), *(["-F"] if follow else []), str(log)])

    def _is_loaded(self) -> bool:
        return _succeeds(["launchctl", "print", self._job()])

    def _job(self) -> str:
        return f"{self._domain()}/{LABEL}"

    def _domain(self) -> str:
        """`gui` exists only while the user is logged in at the screen; over ssh there is `user`."""
        if self._scope == "system":
            return "system"
        gui = f"gui/{os.getuid()}"
        return gui if _succeeds(["launchctl", "print", gui]) else f"user/{os.getuid()}"


def config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def check(words: Sequence[str]) -> None:
    """Runs the command. Raises CommandFailed with its last line of output."""
    ran = subprocess.run(_found(words), capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        output = (ran.stderr + ran.stdout).strip()
        last_line = output.splitlines()[-1] if output else "no output"
        raise CommandFailed(
            f"`{' '.join(words)}` ended with status {ran.returncode}: {last_line.rstrip('.')}. Correct that, or run "
            "`mlx-manager service install --print` to see the service's file."
        )


def call(words: Sequence[str]) -> int:
    """Runs the command on this terminal and returns its exit status. Ctrl-C ends both."""
    return subprocess.run(_found(words), check=False).returncode


def _succeeds(words: Sequence[str]) -> bool:
    return subprocess.run(_found(words), capture_output=True, check=False).returncode == 0


def _found(words: Sequence[str]) -> Sequence[str]:
    if shutil.which(words[0]) is None:
        raise CommandFailed(
            f"The command {words[0]} is not installed. Run `mlx-manager service install --print` to see the service's "
            "file, and adapt it to the service manager of this system."
        )
    return words
