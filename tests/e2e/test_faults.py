"""Faults staged on the real server: what clients see, and what is left behind."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import StageSteps
from tests.running_server import HANG_SECONDS, chunks_of, running_server, wait_for_exit

BABBLE = {"model": "babbler", "prompt": "x", "temperature": 0, "max_tokens": 8000}


def test_killed_worker_ends_the_stream_with_an_error_and_the_next_request_is_answered(
    tmp_path: Path, babbler: Path
) -> None:
    with running_server(tmp_path, default_model=babbler) as server:
        with server.stream("/v1/completions", BABBLE) as payloads:
            first = json.loads(next(payloads))
            (worker,) = server.workers()
            worker.kill()
            rest = list(payloads)
        assert first["choices"][0]["text"]
        assert json.loads(rest[-1])["error"]["code"] == "engine_failed"
        assert "SIGKILL" in json.loads(rest[-1])["error"]["message"]
        answer = server.post("/v1/completions", {**BABBLE, "max_tokens": 3})
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert [process.pid for process in server.workers()] != [worker.pid]


def test_killed_worker_is_a_500_for_a_request_that_is_not_streamed(tmp_path: Path, babbler: Path) -> None:
    with running_server(tmp_path, default_model=babbler, log_level="DEBUG") as server, ThreadPoolExecutor(1) as client:
        pending = client.submit(server.post, "/v1/completions", BABBLE)
        server.wait_for_log("Starting generation")
        server.workers()[0].kill()
        response = pending.result()
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "engine_failed"


def test_worker_killed_in_prefill_is_an_error_and_the_next_request_is_answered(
    tmp_path: Path, babbler: Path, stage_steps: StageSteps
) -> None:
    with running_server(tmp_path, default_model=babbler, log_level="DEBUG") as server, ThreadPoolExecutor(1) as client:
        stage_steps(0.2)  # a second at least, for the chunks of this prompt
        pending = client.submit(server.post, "/v1/completions", BABBLE | {"prompt": "word " * 3000})
        server.wait_for_log("Starting generation")
        time.sleep(0.5)
        server.worker().kill()
        assert (pending.result().status_code, pending.result().json()["error"]["code"]) == (500, "engine_failed")
        stage_steps(0)
        assert server.post("/v1/completions", BABBLE | {"max_tokens": 3}).status_code == 200


def test_client_that_leaves_stops_its_generation(tmp_path: Path, babbler: Path) -> None:
    with running_server(tmp_path, default_model=babbler) as server:
        with server.stream("/v1/completions", BABBLE) as payloads:
            next(payloads)
        _assert_idle(server.workers()[0])
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/completions", json=BABBLE, timeout=1)
        _assert_idle(server.workers()[0])


def test_sigterm_lets_the_running_stream_finish_and_leaves_no_process(tmp_path: Path, babbler: Path) -> None:
    with running_server(tmp_path, default_model=babbler) as server:
        (worker,) = server.workers()
        with server.stream("/v1/completions", {**BABBLE, "max_tokens": 500}) as payloads:
            next(payloads)
            server.process.send_signal(signal.SIGTERM)
            chunks = chunks_of(payloads)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(HANG_SECONDS) == 0
        wait_for_exit(worker)


def test_killed_api_takes_its_workers_with_it(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        (worker,) = server.workers()
        server.process.kill()
        wait_for_exit(worker)


def test_model_that_cannot_be_loaded_says_why_and_harms_no_other(tmp_path: Path, babbler: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in babbler.iterdir():
        os.link(file, broken / file.name)
    (broken / "config.json").unlink()
    (broken / "config.json").write_text('{"model_type": "perceptron"}')
    with running_server(tmp_path, available_models=broken) as server:
        for _ in range(2):
            response = server.post("/v1/completions", {**BABBLE, "model": "broken"})
            assert (response.status_code, response.json()["error"]["code"]) == (503, "model_load_failed")
            assert "perceptron" in response.json()["error"]["message"]
        assert server.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"


def test_server_whose_default_model_is_broken_is_alive_and_not_ready(tmp_path: Path, babbler: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(babbler, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    with running_server(tmp_path, default_model=broken, wait=False) as server:
        deadline = time.monotonic() + 60
        status = ""
        while status != "failed":
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.1)
            try:
                status = httpx.get(f"{server.url}/ready").json()["status"]
            except httpx.TransportError:
                continue
            assert status in ("loading", "failed")
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200


def _assert_idle(worker: psutil.Process) -> None:
    """Within five seconds the worker uses next to no CPU time; the generation would take longer than that."""
    for _ in range(10):
        before = sum(worker.cpu_times()[:2])
        time.sleep(0.5)
        if sum(worker.cpu_times()[:2]) - before <= 0.05:
            return
    raise AssertionError("the worker is still generating")


def test_sigterm_ends_with_status_0_every_time(tmp_path: Path) -> None:
    """MLX aborts a process in which a thread ended that had imported it; one exit in five did."""
    for _ in range(4):
        with running_server(tmp_path) as server:
            server.process.terminate()
            assert server.process.wait(HANG_SECONDS) == 0


def test_drain_timeout_ends_streams_with_an_error_event_and_the_rest_with_a_503(tmp_path: Path, babbler: Path) -> None:
    with (
        running_server(tmp_path, default_model=babbler, drain_timeout_seconds=1) as server,
        ThreadPoolExecutor(1) as client,
    ):
        pending = client.submit(server.post, "/v1/completions", BABBLE)
        with server.stream("/v1/completions", BABBLE) as payloads:
            next(payloads)
            server.process.terminate()
            last = list(payloads)[-1]
        assert json.loads(last)["error"]["code"] == "not_ready"
        assert (pending.result().status_code, pending.result().json()["error"]["code"]) == (503, "not_ready")
        assert server.process.wait(HANG_SECONDS) == 0


def test_worker_outlives_a_sigterm_of_its_own(tmp_path: Path, babbler: Path) -> None:
    """A service manager signals the whole group; the API decides when a worker ends."""
    with (
        running_server(tmp_path, default_model=babbler) as server,
        server.stream("/v1/completions", BABBLE | {"max_tokens": 300}) as payloads,
    ):
        next(payloads)
        server.workers()[0].terminate()
        assert chunks_of(payloads)[-1]["choices"][0]["finish_reason"] == "length"


def test_worker_killed_by_a_signal_without_a_name_is_replaced(tmp_path: Path, babbler: Path) -> None:
    with running_server(tmp_path, default_model=babbler) as server:
        with server.stream("/v1/completions", BABBLE) as payloads:
            next(payloads)
            server.workers()[0].send_signal(35)
            assert json.loads(list(payloads)[-1])["error"]["code"] == "engine_failed"
        assert server.post("/v1/completions", BABBLE | {"max_tokens": 2}).status_code == 200


def test_clients_of_workers_that_die_again_and_again_get_answers_or_engine_failed(
    tmp_path: Path, babbler: Path
) -> None:
    with running_server(tmp_path, default_model=babbler) as server, ThreadPoolExecutor(8) as clients:
        pending = [clients.submit(server.post, "/v1/completions", BABBLE | {"max_tokens": 150}) for _ in range(60)]
        for _ in range(3):
            time.sleep(0.7)
            for worker in server.workers():
                worker.kill()
        answers = [answer.result() for answer in pending]
        server.wait_until_ready()
        outcomes = {(answer.status_code, answer.json().get("error", {}).get("code")) for answer in answers}
        assert outcomes <= {(200, None), (500, "engine_failed"), (503, "model_load_failed"), (503, "not_ready")}
        assert (200, None) in outcomes
        assert server.post("/v1/completions", BABBLE | {"max_tokens": 2}).status_code == 200
        assert "Traceback" not in server.log.read_text()
