"""The real servers that the providers are for, each in a process of its own on the demo model."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from mlx_manager.demo import demo_model_path
from tests.running_server import HANG_SECONDS

ROOT = Path(__file__).parents[2]
CACHED = ("mlx-community/Absent-1B-4bit", "mlx-community/Zephyr-7B-4bit")
"""What the Hugging Face cache of the running mlx_lm.server seems to hold."""


@dataclass(frozen=True)
class Upstream:
    url: str
    model_id: str
    """What it was started on."""


@contextlib.contextmanager
def running_mlx_lm(folder: Path) -> Iterator[Upstream]:
    model = _copy_of_the_demo(folder / "demo")
    options = ("--chat-template-args", '{"enable_thinking": false}')
    port = _free_port()
    command = (sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port), *options)
    cache = _make_cache(folder / "hub")
    with _running(command, f"http://127.0.0.1:{port}", "/health", folder, HF_HUB_CACHE=str(cache)) as url:
        yield Upstream(url, str(model.resolve()))


@contextlib.contextmanager
def running_llama_cpp(python: Path, folder: Path) -> Iterator[Upstream]:
    """llama-cpp-python's server, on the demo model as GGUF."""
    model, port = folder / "demo.gguf", _free_port()
    subprocess.run([python, ROOT / "scripts" / "demo_to_gguf.py", model], check=True, timeout=HANG_SECONDS)
    options = ("--model", str(model), "--model_alias", "demo", "--port", str(port))
    command = (str(python), "-m", "llama_cpp.server", *options)
    with _running(command, f"http://127.0.0.1:{port}", "/v1/models", folder) as url:
        yield Upstream(url, "demo")


@contextlib.contextmanager
def _running(command: Sequence[str], url: str, path: str, folder: Path, **environment: str) -> Iterator[str]:
    log = folder / "upstream.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while not _answers(f"{url}{path}"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(HANG_SECONDS)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url).is_success
    return False


def _copy_of_the_demo(folder: Path) -> Path:
    """With the ends of turns among its end tokens, as published models have them: mlx_lm.server knows no others."""
    shutil.copytree(demo_model_path(), folder, ignore=shutil.ignore_patterns("*.py", "draft", "__pycache__"))
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    ends = [token["id"] for token in added if token["content"] in ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


def _make_cache(folder: Path) -> Path:
    for model_id in CACHED:
        repository = folder / f"models--{model_id.replace('/', '--')}"
        snapshot = repository / "snapshots" / "0123456789"
        snapshot.mkdir(parents=True)
        for name in ("config.json", "model.safetensors.index.json", "tokenizer_config.json"):
            (snapshot / name).write_text("{}")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123456789")
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
