"""Workers that do not die and do not answer either: stopped ones, hung ones, and slow ones, which are left alone."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import StageSteps
from tests.running_server import RunningServer, running_server

BABBLE = {"model": "babbler", "prompt": "x", "temperature": 0, "max_tokens": 8000}
SHORT = BABBLE | {"max_tokens": 3}


@pytest.fixture(scope="module")
def impatient(
    tmp_path_factory: pytest.TempPathFactory, babbler: Path, stage_steps: StageSteps
) -> Iterator[RunningServer]:
    """A server that kills a worker after three seconds of silence."""
    with running_server(
        tmp_path_factory.mktemp("server"), bounds={"worker_timeout_seconds": 3}, default_model=babbler
    ) as server:
        yield server


def test_stopped_worker_is_replaced_and_its_stream_ends_with_an_error(impatient: RunningServer) -> None:
    before = impatient.holdings()
    stopped = impatient.worker()
    with impatient.stream("/v1/completions", BABBLE) as payloads:
        next(payloads)
        stopped.suspend()
        error = json.loads(list(payloads)[-1])["error"]
    assert error["code"] == "engine_failed"
    assert "has not responded for 3 s and was killed" in error["message"]
    assert impatient.post("/v1/completions", SHORT).status_code == 200
    assert impatient.worker().pid != stopped.pid
    impatient.wait_until_nothing_is_left_of_it(before)


def test_stopped_worker_that_goes_on_in_time_is_left_alone(impatient: RunningServer) -> None:
    worker = impatient.worker()
    worker.suspend()
    assert "has not responded for" in impatient.wait_for_status("not_responding")["error"]
    worker.resume()
    impatient.wait_until_ready()
    assert impatient.worker().pid == worker.pid


def test_long_step_is_not_mistaken_for_a_stopped_worker(impatient: RunningServer, stage_steps: StageSteps) -> None:
    worker = impatient.worker()
    with ThreadPoolExecutor(1) as client:
        stage_steps(4.5)
        pending = client.submit(impatient.post, "/v1/completions", SHORT)
        impatient.wait_for_status("not_responding")
        stage_steps(0)
        assert pending.result().status_code == 200
    assert impatient.worker().pid == worker.pid


def test_idle_worker_that_is_stopped_is_not_ready_and_is_replaced(impatient: RunningServer) -> None:
    stopped = impatient.worker()
    stopped.suspend()
    impatient.wait_for_status("not_responding")
    impatient.wait_until_ready()
    assert impatient.worker().pid != stopped.pid


def test_step_without_end_gets_its_worker_replaced(tmp_path: Path, babbler: Path, stage_steps: StageSteps) -> None:
    with (
        running_server(
            tmp_path, bounds={"step_timeout_seconds": 1}, default_model=babbler, log_level="DEBUG"
        ) as server,
        ThreadPoolExecutor(1) as client,
    ):
        hung = server.worker()
        stage_steps(1000)
        pending = client.submit(server.post, "/v1/completions", BABBLE)
        server.wait_for_log("Starting generation")
        time.sleep(0.5)
        stage_steps(0)
        answer = pending.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")
        assert "has been busy with one step" in answer.json()["error"]["message"]
        assert server.post("/v1/completions", SHORT).status_code == 200
        assert server.worker().pid != hung.pid
