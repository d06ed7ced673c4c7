"""`pull` against a hub: what it brings, what it goes on with, and what it says when there is none."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line.commands import MLX_MANAGER, environment, mlx_manager
from tests.command_line.hub import REPO, Hub, running_hub
from tests.running_server import HANG_SECONDS, eventually

MEGABYTE = 2**20
WEIGHTS = bytes(range(256)) * (32 * MEGABYTE // 256)


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS, "picture.png": b"not wanted"}
    with running_hub(files) as running:
        yield running


def pull(hub_url: str, home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return mlx_manager("pull", *arguments, HF_ENDPOINT=hub_url, HF_HOME=home, HF_HUB_DISABLE_XET=1)


def test_pull_brings_what_the_server_needs_and_prints_where_it_is(hub: Hub, tmp_path: Path) -> None:
    ran = pull(hub.url, tmp_path, REPO)
    assert ran.returncode == 0, ran.stderr
    (folder,) = ran.stdout.splitlines()
    assert sorted(file.name for file in Path(folder).iterdir()) == ["config.json", "model.safetensors"]
    assert (Path(folder) / "model.safetensors").read_bytes() == WEIGHTS
    assert f"mlx-manager serve {REPO}" in ran.stderr


def test_ctrl_c_stops_at_once_and_the_next_pull_fetches_only_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    hub.stall_at = 24 * MEGABYTE
    process = subprocess.Popen(
        [*MLX_MANAGER, "pull", REPO],
        env=environment(HF_ENDPOINT=hub.url, HF_HOME=tmp_path, HF_HUB_DISABLE_XET=1),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: list(tmp_path.rglob("snapshots/*/config.json")), bool)
    eventually(lambda: [file.stat().st_size for file in tmp_path.rglob("*.incomplete")], any)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "Stopped. What is complete stays; the next pull fetches the rest."
    assert list(tmp_path.rglob("*.incomplete")) == []

    hub.stall_at = None
    ran = pull(hub.url, tmp_path, REPO)
    assert ran.returncode == 0, ran.stderr
    assert sorted(hub.sent) == ["config.json", "model.safetensors", "model.safetensors"]
    assert (Path(ran.stdout.strip()) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_connection_that_breaks_in_the_middle_of_a_file_is_taken_up_there(hub: Hub, tmp_path: Path) -> None:
    hub.break_at = 24 * MEGABYTE
    ran = pull(hub.url, tmp_path, REPO)
    assert ran.returncode == 0, ran.stderr
    first, second = hub.begins
    assert first == 0 < second
    assert (Path(ran.stdout.strip()) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_hub_that_cannot_be_reached_is_told_even_if_the_model_is_here(hub: Hub, tmp_path: Path) -> None:
    assert pull(hub.url, tmp_path, REPO).returncode == 0
    ran = pull("http://127.0.0.1:9", tmp_path, REPO)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("Error: The hub at http://127.0.0.1:9 cannot be reached")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("someone/nothing",), "The hub shows you no someone/nothing"),
        ((REPO, "--revision", "v9"), "has no revision 'v9'"),
        (("gated/model",), "accept the terms"),
        (("down/model",), "refused: "),
        (("no such id",), "is not a Hugging Face repo id"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    hub: Hub, tmp_path: Path, arguments: tuple[str, ...], remedy: str
) -> None:
    ran = pull(hub.url, tmp_path, *arguments)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert remedy in ran.stderr
    assert len(ran.stderr.splitlines()) == 1, ran.stderr
