"""What runs the server as a service: its commands start, reload, probe and end the real server.

The units and property lists are those of `mlx-manager service install --print`; the Dockerfile lies in `deploy/`.
"""

import json
import os
import plistlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.config import MLXServerSettings
from tests.command_line.commands import mlx_manager
from tests.installation.image_root import instructions
from tests.running_server import HANG_SECONDS, eventually, running_server, wait_for_exit

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
MLX_MANAGER = (sys.executable, "-c", "from mlx_manager.cli import main; main()")
"""In place of the installed command."""
SERVICES = [(), ("--system", "--account", "daemon"), ("--system",)]
DEFAULT_DRAIN_SECONDS = MLXServerSettings.model_fields["drain_timeout_seconds"].default
BABBLE = {"model": "babbler", "prompt": "x", "temperature": 0, "max_tokens": 400}


def printed(system: str, *options: str, hf_home: str = "") -> str:
    ran = mlx_manager("service", "install", *options, "--print", "--for", system, HF_HOME=hf_home)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def unit_settings(text: str) -> dict[str, str]:
    lines = (line.partition("=") for line in text.splitlines() if re.match(r"[A-Z]\w*=", line))
    return {name: value for name, _, value in lines}


def plist(*options: str) -> dict[str, Any]:
    loaded: dict[str, Any] = plistlib.loads(printed("macos", *options).encode())
    return loaded


def last_stage() -> dict[str, str]:
    """The instructions of the Dockerfile's last stage."""
    lines = instructions(DOCKERFILE)
    begins = max(place for place, (instruction, _) in enumerate(lines) if instruction == "FROM")
    return dict(lines[begins:])


def here(command: list[str]) -> list[str]:
    """The command with this environment's mlx-manager in place of the installed one."""
    assert Path(command[0]).name == "mlx-manager"
    return [*MLX_MANAGER, *command[1:]]


def test_units_commands_start_reload_and_drain_the_server(tmp_path: Path, babbler: Path) -> None:
    unit = unit_settings(printed("linux"))
    command = here(shlex.split(unit["ExecStart"]))
    (tmp_path / "mlx-manager.toml").write_text("")
    with running_server(tmp_path, command=command, default_model=babbler) as server:
        (tmp_path / "mlx-manager.toml").write_text("keep_alive = 300\n")
        reload = shlex.split(unit["ExecReload"].replace("$$MAINPID", str(server.process.pid)))
        subprocess.run(reload, check=True, timeout=HANG_SECONDS)
        server.wait_for_log("Settings reloaded: changed: keep_alive")
        worker = server.worker()
        assert unit["KillMode"] == "mixed"  # SIGTERM is for the server alone: a worker's streams may finish
        with server.stream("/v1/completions", BABBLE) as payloads:
            next(payloads)
            server.process.send_signal(signal.SIGTERM)
            assert list(payloads)[-1] == "[DONE]"
        assert server.process.wait(HANG_SECONDS) == 0
        wait_for_exit(worker)
    assert unit["RestartPreventExitStatus"] == "2"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("options", SERVICES, ids=" ".join)
def test_systemd_has_no_complaint_about_a_unit_and_rates_a_system_unit_as_safe(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    unit = tmp_path / "mlx-manager.service"
    unit.write_text(printed("linux", *options))
    read = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=HANG_SECONDS)
    complaints = [line for line in read.stderr.splitlines() if unit.name in line]  # and not of the machine's others
    assert (read.returncode, complaints) == (0, [])
    if not options:
        return
    secure = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    if "unrecognized option" in secure.stderr:
        pytest.skip("this systemd cannot judge a unit that is not installed")
    assert secure.returncode == 0, secure.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_reads_awkward_words_of_a_unit_as_they_were_given(tmp_path: Path) -> None:
    unit = tmp_path / "mlx-manager.service"
    unit.write_text(printed("linux", '/models/50% of $HOME; "x" \\y', hf_home=f"{tmp_path}/a b%h"))
    read = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert (read.returncode, [line for line in read.stderr.splitlines() if unit.name in line]) == (0, [])
    settings = unit_settings(unit.read_text())
    assert settings["ExecStart"].endswith(' serve "/models/50%% of $$HOME; \\"x\\" \\\\y"')
    assert f'Environment="HF_HOME={tmp_path}/a b%%h"' in unit.read_text()


def test_agents_command_starts_the_server_and_ends_with_status_0(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("keep_alive = 300\n")
    agent = plist("demo", "--config", str(tmp_path / "settings.toml"))
    assert agent["EnvironmentVariables"] == {"MLX_SERVER_CONFIG": f"{tmp_path}/settings.toml"}
    command = here(agent["ProgramArguments"])
    with running_server(tmp_path, command=command, config=agent["EnvironmentVariables"]["MLX_SERVER_CONFIG"]) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(HANG_SECONDS) == 0
    assert agent["KeepAlive"] == {"SuccessfulExit": False}  # so that status 0 stays ended
    places = [agent[name] for name in ("WorkingDirectory", "StandardOutPath", "StandardErrorPath")]
    assert all(place.startswith(f"{Path.home()}/Library/") for place in places)  # launchd expands no ~


def test_a_daemon_runs_under_its_account_and_writes_no_home_folder() -> None:
    daemon = plist("--system", "--account", "models")
    assert daemon["UserName"] == "models"
    assert daemon["WorkingDirectory"] == "/Library/Application Support/mlx-manager"
    assert daemon["StandardErrorPath"] == "/Library/Logs/mlx-manager.log"


@pytest.mark.parametrize("drain_seconds", [DEFAULT_DRAIN_SECONDS, 240])
def test_both_systems_wait_for_the_drain_and_allow_all_connections(tmp_path: Path, drain_seconds: int) -> None:
    (tmp_path / "mlx-manager.toml").write_text(f"drain_timeout_seconds = {drain_seconds}\n")
    config = ("--config", str(tmp_path / "mlx-manager.toml"))
    unit, agent = unit_settings(printed("linux", *config)), plist(*config)
    assert int(unit["TimeoutStopSec"]) == agent["ExitTimeOut"] == drain_seconds + 30
    soft, hard = unit["LimitNOFILE"].split(":")
    assert int(hard) > int(soft) == agent["SoftResourceLimits"]["NumberOfFiles"] > Bounds().max_connections


def test_images_entrypoint_is_healthy_for_its_check_and_hears_sigterm(tmp_path: Path) -> None:
    given = last_stage()
    command = here(json.loads(given["ENTRYPOINT"]))  # JSON: no shell stands between it and signals
    environment = dict(part.split("=", 1) for part in shlex.split(given["ENV"]))
    settings = {
        name.removeprefix("MLX_SERVER_").lower(): value
        for name, value in environment.items()
        if name.startswith("MLX_SERVER_")
    }
    assert settings.pop("host") == "0.0.0.0"
    del settings["port"]
    assert settings == {}
    assert given["USER"] not in ("root", "0")
    check = json.loads(given["HEALTHCHECK"].partition("CMD ")[2])
    with running_server(tmp_path, command=command) as server:
        assert health(check, server.port) == 0
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(HANG_SECONDS) == 0
        assert health(check, server.port) == 1


def health(check: list[str], port: int | None) -> int:
    assert check[0] == "python"
    environment = {**os.environ, "MLX_SERVER_PORT": str(port)}
    probe = subprocess.run([sys.executable, *check[1:]], env=environment, capture_output=True, timeout=HANG_SECONDS)
    return probe.returncode


def test_image_is_built_of_files_that_are_there_and_are_sent(tmp_path: Path) -> None:
    root = DEPLOY.parent
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert sent[0] == "*"
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    for name in (name for line in copied for name in line.split()):
        assert (root / name).exists(), name
        assert f"!{name}" in sent


@pytest.mark.skipif(
    shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode != 0,
    reason="no docker daemon runs here",
)
def test_image_builds_and_answers(tmp_path: Path) -> None:
    tag = "mlx-manager-test"
    build = ["docker", "build", "--file", str(DOCKERFILE), "--tag", tag, str(DEPLOY.parent)]
    subprocess.run(build, check=True, timeout=1800)
    run = ["docker", "run", "--detach", "--rm", "--publish", "127.0.0.1::8000", tag]
    environment = ["--env", "MLX_SERVER_API_KEYS=opensesame"]
    container = subprocess.run(
        [*run[:-1], *environment, tag], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        address = subprocess.run(
            ["docker", "port", container, "8000"], check=True, capture_output=True, text=True
        ).stdout.split()[0]
        eventually(lambda: answers(f"http://{address}/ready"), bool)
    finally:
        subprocess.run(["docker", "stop", "--time", "45", container], check=True, timeout=HANG_SECONDS)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
