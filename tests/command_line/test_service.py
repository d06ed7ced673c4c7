"""`service`: which commands of systemd and launchd it runs, and what it refuses. The two are stand-ins that record."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line.commands import environment, mlx_manager
from tests.running_server import HANG_SECONDS

TOOL = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
[ -f "$CALLS.fails" ] && grep -qxF "$(basename "$0") $1" "$CALLS.fails" && { echo "not now" >&2; exit 5; }
echo "state = running"
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which the stand-ins write their command lines; commands in `calls.fails` fail."""
    (tmp_path / "bin").mkdir()
    for name in ("systemctl", "journalctl", "launchctl", "tail"):
        (tmp_path / "bin" / name).write_text(TOOL)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name in ("XDG_CONFIG_HOME", "SUDO_USER", "MLX_SERVER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "calls"


def on_a_mac(call: str) -> "subprocess.CompletedProcess[str]":
    """A function of the command, as the command line calls it on macOS."""
    source = f"from mlx_manager.command_line import console, service; console.run(lambda: service.{call})"
    return subprocess.run(
        [sys.executable, "-c", source], env=environment(), capture_output=True, text=True, timeout=HANG_SECONDS
    )


INSTALL_ON_A_MAC = "install(None, None, 'user', None, system='macos')"


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="installs for systemd")


def recorded(calls: Path) -> list[str]:
    lines = calls.read_text().splitlines()
    calls.unlink()
    return lines


@on_linux
def test_a_service_of_a_user_is_installed_shown_and_removed_on_linux(calls: Path) -> None:
    unit = calls.parent / "home/.config/systemd/user/mlx-manager.service"
    installed = mlx_manager("service", "install", "demo")
    assert installed.returncode == 0, installed.stderr
    assert "serve demo" in unit.read_text()
    assert (calls.parent / "home/.config/mlx-manager").is_dir()  # systemd refuses a missing WorkingDirectory
    assert recorded(calls) == [
        "systemctl --user daemon-reload",
        "systemctl --user enable mlx-manager",
        "systemctl --user restart mlx-manager",
    ]
    assert mlx_manager("service", "status").returncode == 0
    assert recorded(calls) == ["systemctl --user --no-pager status mlx-manager"]
    assert mlx_manager("service", "logs", "--lines", "7", "--follow").returncode == 0
    assert recorded(calls) == ["journalctl --user --unit mlx-manager --lines 7 --follow"]
    assert mlx_manager("service", "uninstall").returncode == 0
    assert not unit.exists()
    assert recorded(calls) == ["systemctl --user disable --now mlx-manager", "systemctl --user daemon-reload"]


def test_an_agent_is_installed_again_after_the_old_one_has_ended_and_is_removed_on_a_mac(calls: Path) -> None:
    plist = calls.parent / "home/Library/LaunchAgents/io.github.mlx-manager.plist"
    domain = f"gui/{os.getuid()}"
    calls.with_suffix(".fails").write_text("")
    ends = f"launchctl bootout {domain}/io.github.mlx-manager"
    # The stand-in's job is gone as soon as `print` fails, which happens once bootout has run.
    (calls.parent / "bin/launchctl").write_text(
        TOOL + f'[ "$*" = "bootout {domain}/io.github.mlx-manager" ] && echo "launchctl print" > "$CALLS.fails"\ntrue\n'
    )
    assert on_a_mac(INSTALL_ON_A_MAC).returncode == 0
    lines = recorded(calls)
    assert plist.exists()
    assert lines.index(ends) < len(lines) - 1
    assert lines[-1].startswith("launchctl bootstrap ")
    assert lines[-1].endswith(f"/{os.getuid()} {plist}")
    assert on_a_mac("uninstall('user', system='macos')").returncode == 0
    assert not plist.exists()


def test_a_mac_without_a_screen_session_uses_the_domain_of_the_user(calls: Path) -> None:
    calls.with_suffix(".fails").write_text("launchctl print\n")
    assert on_a_mac(INSTALL_ON_A_MAC).returncode == 0
    plist = calls.parent / "home/Library/LaunchAgents/io.github.mlx-manager.plist"
    assert recorded(calls)[-1] == f"launchctl bootstrap user/{os.getuid()} {plist}"


def test_logs_of_a_mac_are_the_file_that_the_agent_writes(calls: Path) -> None:
    show = "logs('user', 10, follow=True, system='macos')"
    assert "Library/Logs/mlx-manager.log" in on_a_mac(show).stderr
    log = calls.parent / "home/Library/Logs/mlx-manager.log"
    log.parent.mkdir(parents=True)
    log.write_text("x")
    assert on_a_mac(show).returncode == 0
    assert recorded(calls) == [f"tail -n 10 -F {log}"]


@on_linux
def test_a_command_of_the_service_manager_that_fails_is_named(calls: Path) -> None:
    calls.with_suffix(".fails").write_text("systemctl --user\n")
    ran = mlx_manager("service", "install")
    assert ran.returncode == 1
    assert "`systemctl --user daemon-reload` ended with status 5: not now." in ran.stderr
    assert mlx_manager("service", "status").returncode == 1


@on_linux
def test_a_machine_without_systemd_is_told_of_print(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(calls.parent))
    ran = mlx_manager("service", "install")
    assert (ran.returncode, "service install --print" in ran.stderr) == (1, True)


@pytest.mark.parametrize("command", ["status", "uninstall"])
def test_a_service_that_is_not_there_is_said_to_be_missing(calls: Path, command: str) -> None:
    ran = mlx_manager("service", command)
    assert ran.returncode == 1
    assert "Run `mlx-manager service install`" in ran.stderr
    assert not calls.exists()


def test_secrets_of_the_shell_stay_out_of_the_file_and_are_named(calls: Path) -> None:
    ran = mlx_manager("service", "install", "--print", MLX_SERVER_API_KEYS="hidden", MLX_SERVER_MAX_QUEUE="3")
    assert "hidden" not in ran.stdout
    assert "MLX_SERVER_API_KEYS, MLX_SERVER_MAX_QUEUE" in ran.stderr


@on_linux
def test_the_settings_file_of_the_folder_is_the_one_that_serve_would_read(calls: Path) -> None:
    (calls.parent / "mlx-manager.toml").write_text("drain_timeout_seconds = 100\n")
    ran = mlx_manager("service", "install", "--print")
    assert f"Environment=MLX_SERVER_CONFIG={calls.parent}/mlx-manager.toml" in ran.stdout
    assert "TimeoutStopSec=130" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("install", "--account", "anna"), "--account is for --system"),
        (("install", "--for", "macos"), "It needs --print"),
        (("install", "--system", "--print", "--for", "macos"), "pass --account NAME"),
        (("install", "--config", "no-such-file.toml"), "does not exist"),
    ],
)
def test_what_cannot_be_installed_is_refused_with_the_remedy(
    calls: Path, arguments: tuple[str, ...], message: str
) -> None:
    ran = mlx_manager("service", *arguments)
    assert ran.returncode != 0
    assert message in ran.stderr
    assert not calls.exists()


@on_linux
def test_a_system_service_needs_root_and_a_program_outside_of_home_folders(
    calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = mlx_manager("service", "install", "--system")
    assert ran.returncode == 1
    assert ("cannot read /" if os.geteuid() == 0 else "sudo mlx-manager service install --system") in ran.stderr
    monkeypatch.setenv("SUDO_USER", "anna")
    assert "without sudo" in mlx_manager("service", "install").stderr
    assert not calls.exists()
