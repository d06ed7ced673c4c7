"""Ranks on the hosts of a file: over ssh to this machine, or started by hand; and ranks that do not fit together."""

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.running_server import BACKEND, HANG_SECONDS, RunningServer, environment_of_server, eventually, running_server

SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
COMMAND = ("-c", "from mlx_manager.cli import main; main()")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def hosts_file(folder: Path, ssh: str | None = None) -> Path:
    first, second = free_ports(2)
    other = {"ips": [f"127.0.0.1:{second}"], **({"ssh": ssh, "python": sys.executable} if ssh is not None else {})}
    file = folder / "hosts.json"
    hosts = [{"ssh": "localhost", "ips": [f"127.0.0.1:{first}"]}, other]
    source = [f"PYTHONPATH={BACKEND}"] if ssh is not None else []
    file.write_text(json.dumps({"hosts": hosts, "envs": source}))
    return file


@pytest.fixture
def ssh_path(tmp_path: Path) -> Iterator[str]:
    """A PATH whose ssh reaches, as the host `other`, a server of this test on this machine with a key of this test."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's client and server (apt-get install openssh-server)")
    (port,) = free_ports(1)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    server = {"Port": port, "ListenAddress": "127.0.0.1", "HostKey": tmp_path / "host", "PidFile": "none"}
    server |= {"AuthorizedKeysFile": tmp_path / "user.pub", "StrictModes": "no", "UsePAM": "no"}
    (tmp_path / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in server.items()))
    host_key = (tmp_path / "host.pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {host_key}")
    client = {"HostName": "127.0.0.1", "Port": port, "User": getpass.getuser(), "IdentityFile": tmp_path / "user"}
    client |= {"UserKnownHostsFile": tmp_path / "known", "IdentitiesOnly": "yes", "IdentityAgent": "none"}
    (tmp_path / "config").write_text("Host other\n" + "".join(f"  {name} {value}\n" for name, value in client.items()))
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path / "config"} "$@"\n')
    script.chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.PIPE)
    try:
        eventually(lambda: can_connect(port), lambda reached: reached)
        yield os.pathsep.join([str(script.parent), os.environ["PATH"]])
    finally:
        process.terminate()
        process.communicate()


def can_connect(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_rank_on_a_host_is_started_over_ssh_and_again_after_its_loss(
    tmp_path: Path, ssh_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", ssh_path)
    with running_server(tmp_path, default_model="demo", rank_hosts=hosts_file(tmp_path, "other")) as server:
        assert "Rank 1 of model 'demo' on other is ready" in server.log.read_text()
        assert server.chat("What is the capital of France?")["choices"][0]["message"]["content"].endswith("Paris.")
        body = {"model": "demo", "messages": [{"role": "user", "content": "Tell a story"}], "min_tokens": 900}
        with server.stream("/v1/chat/completions", body | {"max_tokens": 1000}) as payloads:
            next(payloads)
            connection = next(one for one in descendants(server) if one.name() == "ssh")
            connection.kill()
            *_, last = payloads
        assert "Rank 1 of model 'demo' on other was killed by SIGKILL" in last
        server.wait_until_ready()
        assert server.chat("What is the capital of France?")["choices"][0]["message"]["content"].endswith("Paris.")


def test_host_that_ssh_does_not_reach_is_named_with_its_error(
    tmp_path: Path, ssh_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", ssh_path)
    (tmp_path / "user").unlink()
    hosts = hosts_file(tmp_path, "other")
    with running_server(tmp_path, wait=False, default_model="demo", rank_hosts=hosts) as server:
        error = failure_of(server)
    assert "Rank 1 of model 'demo' on other exited with status 255" in error
    assert "Permission denied" in error


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A hosts file, and its rank 1, which waits for rank 0."""
    hosts = hosts_file(tmp_path)
    with rank_by_hand(hosts, BACKEND) as process:
        yield hosts, process


@contextlib.contextmanager
def rank_by_hand(hosts: Path, backend: Path) -> Iterator[subprocess.Popen[str]]:
    environment = environment_of_server({}) | {"PYTHONPATH": str(backend)}
    command = [sys.executable, "-P", *COMMAND, "rank", "demo", "--join", str(hosts), "--rank", "1"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=HANG_SECONDS)
        finally:
            process.kill()


def test_rank_that_is_started_by_hand_joins_each_server_that_starts(
    tmp_path: Path, by_hand: tuple[Path, subprocess.Popen[str]]
) -> None:
    hosts, rank = by_hand
    for _ in range(2):
        with running_server(tmp_path, default_model="demo", rank_hosts=hosts) as server:
            assert server.chat("What is the capital of France?")["choices"][0]["message"]["content"].endswith("Paris.")
            assert len(server.workers()) == 1
    assert rank.poll() is None


def test_server_waits_for_a_rank_that_is_started_by_hand_longer_than_for_a_silent_worker(tmp_path: Path) -> None:
    """MLX stops all threads of rank 0, and so its heartbeats, while it waits."""
    hosts, silence_seconds = hosts_file(tmp_path), 2
    bounds = {"worker_timeout_seconds": silence_seconds}
    with running_server(tmp_path, wait=False, bounds=bounds, default_model="demo", rank_hosts=hosts) as server:
        server.wait_for_log("Waiting for rank 1")
        waiting = server.worker()
        time.sleep(4 * silence_seconds)
        assert server.worker().pid == waiting.pid
        with rank_by_hand(hosts, BACKEND):
            server.wait_until_ready()
            assert server.worker().pid == waiting.pid


def test_rank_of_another_version_is_refused_on_both_sides(tmp_path: Path) -> None:
    shutil.copytree(BACKEND / "mlx_manager", tmp_path / "other" / "mlx_manager")
    module = tmp_path / "other" / "mlx_manager" / "mlx_server" / "__init__.py"
    module.write_text(module.read_text() + '\n__version__ = "99.0"\n')
    hosts = hosts_file(tmp_path)
    with (
        rank_by_hand(hosts, tmp_path / "other") as rank,
        running_server(tmp_path, wait=False, default_model="demo", rank_hosts=hosts) as server,
    ):
        error = failure_of(server)
        _, output = rank.communicate(timeout=HANG_SECONDS)
    for text in (error, output):
        assert "rank 1 on" in text
        assert "has mlx-manager 99.0 (code " in text
        assert "Install the same version on all machines." in text
    assert rank.returncode == 1


def failure_of(server: RunningServer) -> str:
    """Why the default model cannot be loaded."""
    eventually(lambda: can_connect(server.port or 0), lambda reached: reached)
    error: str = server.wait_for_status("failed")["error"]
    return error


def descendants(server: RunningServer) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)
