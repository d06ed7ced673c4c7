"""The files of `deploy/`: their commands start, reload, probe and end the real server, and the tools read them."""

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

import httpx
import pytest

from mlx_manager.mlx_server.config import MLXServerSettings
from tests.running_server import HANG_SECONDS, eventually, running_server, wait_for_exit

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "mlx-manager.service"
PLIST = DEPLOY / "io.github.mlx-manager.plist"
DOCKERFILE = DEPLOY / "Dockerfile"
MLX_MANAGER = (sys.executable, "-c", "from mlx_manager.cli import main; main()")
"""In place of where the files have it installed."""
LONGEST_DRAIN_SECONDS = MLXServerSettings.model_fields["drain_timeout_seconds"].default
BABBLE = {"model": "babbler", "prompt": "x", "temperature": 0, "max_tokens": 400}


def unit_settings() -> dict[str, str]:
    lines = (line.partition("=") for line in UNIT.read_text().splitlines() if re.match(r"[A-Z]\w*=", line))
    return {name: value for name, _, value in lines}


def plist() -> dict[str, object]:
    loaded: dict[str, object] = plistlib.loads(PLIST.read_bytes())
    return loaded


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile's last stage, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    last_stage = max(place for place, line in enumerate(lines) if line[0] == "FROM")
    return [(line[0], line[1]) for line in lines[last_stage:]]


def here(command: list[str], program: str) -> list[str]:
    """The command with this environment's mlx-manager in place of `program`."""
    assert command[0] == program
    return [*MLX_MANAGER, *command[1:]]


def test_units_commands_start_reload_and_drain_the_server(tmp_path: Path, babbler: Path) -> None:
    unit = unit_settings()
    command = here(shlex.split(unit["ExecStart"]), "/opt/mlx-manager/.venv/bin/mlx-manager")
    (tmp_path / "mlx-manager.toml").write_text("")
    with running_server(tmp_path, command=command, default_model=babbler) as server:
        (tmp_path / "mlx-manager.toml").write_text("keep_alive = 300\n")
        reload = shlex.split(unit["ExecReload"].replace("$MAINPID", str(server.process.pid)))
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
    assert int(unit["TimeoutStopSec"]) > LONGEST_DRAIN_SECONDS
    assert unit["RestartPreventExitStatus"] == "2"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_unit_is_one_that_systemd_reads_without_a_word_and_holds_for_safe(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/mlx-manager/.venv/bin/mlx-manager", sys.executable))
    read = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=HANG_SECONDS)
    complaints = [line for line in read.stderr.splitlines() if UNIT.name in line]  # and not of the machine's others
    assert (read.returncode, complaints) == (0, [])
    secure = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    if "unrecognized option" in secure.stderr:
        pytest.skip("this systemd cannot judge a unit that is not installed")
    assert secure.returncode == 0, secure.stdout


def test_agents_command_starts_the_server_and_ends_with_status_0(tmp_path: Path) -> None:
    agent = plist()
    arguments, environment = agent["ProgramArguments"], agent["EnvironmentVariables"]
    assert isinstance(arguments, list)
    assert isinstance(environment, dict)
    settings = {name.removeprefix("MLX_SERVER_").lower(): value for name, value in environment.items()}
    assert settings.keys() <= MLXServerSettings.model_fields.keys()
    del settings["port"]
    command = here(arguments, "/Users/USER/mlx-manager/.venv/bin/mlx-manager")
    with running_server(tmp_path, command=command, **settings) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(HANG_SECONDS) == 0
    assert agent["KeepAlive"] == {"SuccessfulExit": False}  # so that status 0 stays ended
    timeout = agent["ExitTimeOut"]
    assert isinstance(timeout, int)
    assert timeout > LONGEST_DRAIN_SECONDS
    places = [arguments[0], agent["WorkingDirectory"], agent["StandardOutPath"], agent["StandardErrorPath"]]
    assert all(str(place).startswith("/Users/USER/") for place in places)  # launchd expands no ~


def test_images_entrypoint_is_healthy_for_its_check_and_hears_sigterm(tmp_path: Path) -> None:
    given = dict(instructions())
    command = here(json.loads(given["ENTRYPOINT"]), "mlx-manager")  # JSON: no shell stands between it and signals
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
