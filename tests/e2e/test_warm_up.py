"""A model that is ready has run every kind of work, so that no request waits for what the first run needs."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.mlx_compiler import needs_compiler
from tests.running_server import RunningServer, eventually, running_server

HERE = Path(__file__).parent
SERVE = (sys.executable, "-c", "from mlx_manager.cli import main; main()", "serve")


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that names what the workers of servers compile, once they take their CPU for a GPU."""
    file = tmp_path / "compiled"
    file.touch()
    monkeypatch.setenv("PYTHONPATH", str(HERE / "staged_gpu"))
    monkeypatch.setenv("STAGED_COMPILATIONS", str(file))
    return file


KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1, "seed": 7},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 1},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.5, "min_p": 0.01},
    {"temperature": 2, "top_p": 0.9999},
    {"min_p": 0.1},
    {"temperature": 0, "logprobs": 5},
    {"temperature": 0, "repetition_penalty": 1.2},
    {"temperature": 0, "frequency_penalty": 0.5},
    {"presence_penalty": 0.5, "logit_bias": {"5": 2}},
    {"guided_regex": "[a-z ]{50}"},
]


def use(server: RunningServer) -> None:
    """Requests of each kind alone, in company, and with prompts of many lengths."""

    def ask(number: int, kind: dict[str, Any]) -> None:
        prompt = f"{number} " + "word " * (number % 7) ** 3
        answer = server.post("/v1/completions", {"model": "babbler", "prompt": prompt, "max_tokens": 5, **kind})
        assert answer.status_code == 200, answer.text

    for number, kind in enumerate(KINDS):
        ask(number, kind)
    with ThreadPoolExecutor(len(KINDS)) as together:
        list(together.map(ask, range(100, 100 + 3 * len(KINDS)), 3 * KINDS))
        list(together.map(ask, range(200, 205), [KINDS[0]] * 5))


@needs_compiler
def test_nothing_is_compiled_once_a_model_is_ready(tmp_path: Path, compiled: Path, babbler: Path) -> None:
    with running_server(tmp_path, default_model=babbler) as server:
        before = compiled.read_text().splitlines()
        assert len(before) > 5
        assert before.count("_step") > 5, "the graphs of decode steps"
        use(server)
        assert compiled.read_text().splitlines() == before


@pytest.mark.slow
def test_without_a_warm_up_requests_wait_for_what_they_compile(tmp_path: Path, compiled: Path, babbler: Path) -> None:
    with running_server(tmp_path, default_model=babbler, warm_up=False) as server:
        before = compiled.read_text().splitlines()
        use(server)
        assert len(compiled.read_text().splitlines()) > len(before) + 5


@pytest.fixture
def step_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that says how many seconds each forward pass takes longer."""
    file = tmp_path / "step-seconds"
    monkeypatch.setenv("PYTHONPATH", str(HERE / "staged_steps"))
    monkeypatch.setenv("STAGED_STEP_SECONDS", str(file))
    yield file
    file.unlink(missing_ok=True)


def warming_up(server: RunningServer) -> dict[str, Any]:
    """What /ready says while the model warms up."""
    return eventually(
        server.readiness,
        lambda body: body["status"] != "loading" or body["progress"]["stage"] == "warming up",
    )


def wait_until_answering(server: RunningServer) -> None:
    def health() -> int:
        try:
            return httpx.get(f"{server.url}/health").status_code
        except httpx.TransportError:
            return 0

    eventually(health, lambda status: status == 200)


def test_ready_and_the_pool_say_that_a_model_warms_up_and_the_log_how_long_it_took(
    tmp_path: Path, step_seconds: Path
) -> None:
    step_seconds.write_text("0.3")
    with running_server(tmp_path, wait=False) as server:
        wait_until_answering(server)
        body = warming_up(server)
        assert (body["status"], body["progress"]["stage"]) == ("loading", "warming up")
        pool = httpx.get(f"{server.url}/admin/pool").json()
        (demo,) = [model for model in pool["models"] if model["id"] == "demo"]
        assert (demo["state"], demo["progress"]["stage"]) == ("loading", "warming up")
        with httpx.stream("GET", f"{server.url}/admin/live") as live:
            frame = json.loads(next(line for line in live.iter_lines() if line).removeprefix("data: "))
        assert [(load["model_id"], load["stage"]) for load in frame["loads"]] == [("demo", "warming up")]
        step_seconds.unlink()
        server.wait_until_ready()
        server.wait_for_log("Model demo warmed up in ")
        pool = httpx.get(f"{server.url}/admin/pool").json()
        (demo,) = [model for model in pool["models"] if model["id"] == "demo"]
        assert set(demo["prefix_cache"].values()) == {0}


@pytest.mark.slow
def test_model_whose_first_steps_fail_is_not_ready_and_the_message_says_how_to_load_it(
    tmp_path: Path, step_seconds: Path
) -> None:
    step_seconds.write_text("0.3")
    with running_server(tmp_path, wait=False) as server:
        wait_until_answering(server)
        warming_up(server)
        step_seconds.write_text("no number")
        failed = server.wait_for_status("failed")
        assert "its first steps fail (ValueError: could not convert" in failed["error"]
        assert "MLX_SERVER_WARM_UP=false" in failed["error"]


def test_no_warm_up_on_the_command_line_skips_it(tmp_path: Path) -> None:
    with running_server(tmp_path, command=(*SERVE, "--no-warm-up")) as server:
        assert server.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"
        assert "warmed up" not in server.log.read_text()
