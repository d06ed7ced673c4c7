"""The steps of deploy/Dockerfile, run in a clean Debian: the image's server answers, is healthy and drains."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.installation.image_root import Image, Stage, make_base
from tests.running_server import HANG_SECONDS, eventually, free_port

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "image"
KEY = {"Authorization": "Bearer opensesame"}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("debootstrap") is None,
    reason="needs root, and debootstrap",
)


@pytest.fixture(params=["cpu", "cuda13"])
def image(request: pytest.FixtureRequest) -> Iterator[tuple[str, Stage]]:
    base, folder = CACHE / "base", CACHE / request.param
    base.parent.mkdir(parents=True, exist_ok=True)
    make_base(base)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield request.param, Image(ROOT / "deploy/Dockerfile", ROOT, folder, base, {"BACKEND": request.param}).last
    finally:
        shutil.rmtree(folder)


def test_the_steps_of_the_dockerfile_give_a_server_that_answers(image: tuple[str, Stage]) -> None:
    backend, stage = image
    if backend == "cpu":
        check_server(stage)
    else:
        check_that_only_the_driver_is_missing(stage)


def check_server(stage: Stage) -> None:
    port = free_port()
    settings = {"MLX_SERVER_PORT": str(port), "MLX_SERVER_API_KEYS": "opensesame"}
    process = subprocess.Popen(stage.command(stage.entrypoint, settings))
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: process.poll() is not None or is_ready(url), bool)
        body = {"model": "demo", "messages": [{"role": "user", "content": "Count to 3"}], "temperature": 0}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=KEY, timeout=HANG_SECONDS).json()
        assert answer["choices"][0]["message"]["content"] == "1, 2, 3"
        assert subprocess.run(stage.command(stage.health_check, settings), timeout=HANG_SECONDS).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


def check_that_only_the_driver_is_missing(stage: Stage) -> None:
    """A machine without an NVIDIA driver cannot start the CUDA build. `doctor` finds its library, and no GPU."""
    command = stage.command([stage.entrypoint[0], "doctor", "--json"])
    ran = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
    checks = {check["name"]: check for check in json.loads(ran.stdout)}
    assert checks["versions"]["state"] == "ok"
    assert "mlx-cuda-13" in checks["MLX"]["found"], checks["MLX"]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False
