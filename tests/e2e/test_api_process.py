"""What the API process is made of, read in the server itself once it has answered chats with tools and streams."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running_server import HANG_SECONDS, environment_of_server, running_server

TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
MESSAGES = [{"role": "user", "content": "How is the weather in Oslo?"}]
BODIES: list[dict[str, object]] = [
    {"stream": True},
    {"tools": [TOOL]},
    {"tools": [TOOL], "tool_choice": "required", "stream": True},
    {"logprobs": True, "top_logprobs": 2, "response_format": {"type": "json_object"}},
]
SERVER_THAT_LOOKS_AT_ITSELF = """
import gc, json, os, runpy, signal, sys, threading, time, urllib.request

def ask(path, body=None):
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return answer.read()

def is_ready():
    try:
        return ask("/ready") is not None
    except OSError:
        return False

def ask_and_look():
    try:
        while not is_ready():
            time.sleep(0.05)
        answers = [ask("/v1/chat/completions", body).decode() for body in bodies]
        ask("/metrics")
        packages = sorted({name.partition(".")[0] for name in sys.modules})
        print(json.dumps([answers, packages, gc.get_freeze_count()]), file=sys.__stdout__, flush=True)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

port, bodies = sys.argv.pop(), json.loads(sys.argv.pop())
threading.Thread(target=ask_and_look, daemon=True).start()
runpy.run_module("mlx_manager.mlx_server.main", run_name="__main__", alter_sys=True)
"""


def seen_by_the_server(tmp_path: Path, port: int, **settings: object) -> tuple[list[str], set[str], int]:
    """The answers to BODIES, the packages that the server has imported by then, and what its collector leaves alone."""
    asked: dict[str, object] = {"model": "demo", "messages": MESSAGES, "max_tokens": 40}
    bodies = [asked | body for body in BODIES]
    ran = subprocess.run(
        [sys.executable, "-c", SERVER_THAT_LOOKS_AT_ITSELF, json.dumps(bodies), str(port)],
        env=environment_of_server({**settings, "port": port}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    answers, packages, frozen = json.loads(ran.stdout.splitlines()[-1])
    return answers, set(packages), frozen


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_api_process_imports_neither_mlx_nor_transformers_nor_logfire(tmp_path: Path, free_port: int) -> None:
    answers, packages, frozen = seen_by_the_server(tmp_path, free_port)
    assert all("choices" in answer for answer in answers)
    assert '"tool_calls"' in answers[2]
    assert packages & {"mlx", "mlx_lm", "transformers", "torch", "llguidance", "logfire"} == set()
    assert {"tokenizers", "jinja2"} <= packages  # what is looked at is there
    assert frozen > 50_000  # a collection that walked what is imported would hold every stream up


def test_logfire_is_imported_where_something_collects(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    _, packages, _ = seen_by_the_server(tmp_path, free_port)
    assert "logfire" in packages


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_mlxs_library_is_mapped_by_the_worker_alone(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        server.chat("Hi", tools=[TOOL])
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in (server.process.pid, server.worker().pid)]
    assert ["libmlx" in mapped for mapped in maps] == [False, True]
