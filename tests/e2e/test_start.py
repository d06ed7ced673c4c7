"""Starts that cannot work end at once, with status 2 and one line that says why."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from tests.running_server import HANG_SECONDS, MODULE, RunningServer, environment_of_server, running_server

LIMITED = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 1024), limit))
from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.main import serve
serve(Bounds(max_connections=3000))
"""
COMMANDS = [MODULE, (sys.executable, "-c", "from mlx_manager.cli import main; main()", "serve")]


def start(command: Sequence[str], **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment_of_server(settings), capture_output=True, text=True, timeout=HANG_SECONDS
    )


@pytest.mark.parametrize("command", COMMANDS, ids=["module", "cli"])
def test_port_in_use_is_told_before_anything_is_loaded(command: Sequence[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = start(command, port=taken.getsockname()[1])
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert "Address already in use" in line


@pytest.mark.parametrize("command", COMMANDS, ids=["module", "cli"])
def test_bad_settings_are_told_a_line_for_each(command: Sequence[str]) -> None:
    ended = start(command, port="many", max_queue=-1)
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Bad setting port", "Bad setting max_queue"]


@pytest.mark.parametrize("host", ["192.0.2.1", "x" * 70])
def test_host_that_cannot_be_listened_on_is_told(host: str) -> None:
    ended = start(MODULE, port=0, host=host)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"Cannot listen on {host}:0: ")


@pytest.mark.parametrize(
    ("setting", "value", "line"),
    [
        ("models", "nonsense", "Bad setting models: the value is not valid JSON"),
        ("config", "/", "The settings file / cannot be read: "),
        ("default_model", "no-such-model", "Bad setting default_model: model 'no-such-model' does not exist. Set demo"),
    ],
)
def test_settings_that_cannot_be_read_are_one_line(setting: str, value: str, line: str) -> None:
    ended = start(MODULE, port=0, **{setting: value})
    assert (ended.returncode, ended.stdout) == (2, "")
    (told,) = ended.stderr.splitlines()
    assert told.startswith(line)


def test_file_that_is_no_toml_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("port = ")
    ended = start(MODULE, config=file)
    (line,) = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (2, "")
    assert line.startswith(f"The settings file {file} cannot be read: ")


def nothing(folder: Path) -> None:
    """Leaves it missing."""


def a_file(folder: Path) -> None:
    folder.touch()


def no_config(folder: Path) -> None:
    folder.mkdir()


def a_garbled_config(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": ')


def a_link_to_itself(folder: Path) -> None:
    folder.symlink_to(folder)


@pytest.mark.parametrize(
    ("command", "place", "reason"),
    [
        (COMMANDS[0], nothing, "there is no folder {}"),
        (COMMANDS[0], a_file, "{} is a file, not a folder"),
        (COMMANDS[0], no_config, "{} has no config.json"),
        (COMMANDS[1], a_garbled_config, "{}/config.json is not a JSON object"),
        (COMMANDS[1], a_link_to_itself, "there is no folder {}"),
    ],
)
def test_default_model_folder_that_is_none_is_one_line(
    tmp_path: Path, command: Sequence[str], place: Callable[[Path], None], reason: str
) -> None:
    folder = tmp_path / "model"
    place(folder)
    given = {"default_model": folder} if command is MODULE else {}
    ended = start(command if command is MODULE else (*command, str(folder)), port=0, **given)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"Bad setting default_model: {reason.format(folder)}")


@pytest.mark.parametrize("hidden", ["model", "model/config.json", "."], ids=["folder", "config", "folder above"])
def test_default_model_that_may_not_be_read_is_one_line(tmp_path: Path, babbler: Path, hidden: str) -> None:
    shutil.copytree(babbler, tmp_path / "model")
    as_people = whom_permissions_hold()
    mode = (tmp_path / hidden).stat().st_mode
    (tmp_path / hidden).chmod(0)
    try:
        ended = start((*as_people, *MODULE), port=0, default_model=tmp_path / "model")
    finally:
        (tmp_path / hidden).chmod(mode)
    (line,) = ended.stderr.splitlines()
    assert (ended.returncode, line.startswith("Bad setting default_model: ")) == (2, True)
    assert str(tmp_path / "model") in line


def whom_permissions_hold() -> Sequence[str]:
    """A command that runs another without root's power to read what it may not."""
    if os.geteuid() != 0:
        return ()
    without = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    if shutil.which("setpriv") is None or subprocess.run((*without, "true"), capture_output=True).returncode != 0:
        pytest.skip("root may read everything, and there is no setpriv that could take that from it")
    return without


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_may_use_head(server: RunningServer, path: str) -> None:
    answer = httpx.head(f"{server.url}{path}")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has a limit of its own")
@pytest.mark.parametrize("limit", [700, 1024, 4096])
def test_models_load_whatever_the_limit_of_open_files_and_it_stays_as_it_was_raised(tmp_path: Path, limit: int) -> None:
    with running_server(tmp_path, command=(sys.executable, "-c", LIMITED, str(limit))) as server:
        assert server.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"
        (worker,) = server.workers()
        expected = min(limit, 3512)
        for process in (psutil.Process(server.process.pid), worker):
            assert process.rlimit(psutil.RLIMIT_NOFILE) == (expected, limit)
        assert ("raise `ulimit -n`" in server.log.read_text()) == (limit < 3512)
