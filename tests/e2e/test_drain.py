"""SIGTERM with clients connected: those that run may finish, those that come are told, nobody is cut off."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.running_server import HANG_SECONDS, chunks_of, eventually, running_server, wait_for_exit
from tests.small_models import make_random_llama

BABBLE = {"model": "babbler", "prompt": "x", "temperature": 0, "max_tokens": 1000}


def test_while_it_drains_the_server_says_so_to_old_and_new_connections(tmp_path: Path, babbler: Path) -> None:
    with (
        running_server(tmp_path, default_model=babbler) as server,
        httpx.Client(base_url=server.url, timeout=HANG_SECONDS) as connected,
    ):
        worker = server.worker()
        connected.get("/health")
        with server.stream("/v1/completions", BABBLE) as payloads:
            next(payloads)
            worker.suspend()  # so that the drain lasts until all have been asked
            server.process.terminate()
            server.wait_for_status("draining")
            for answer in (connected.get("/ready"), httpx.get(f"{server.url}/ready")):
                assert (answer.status_code, answer.json()["status"]) == (503, "draining")
            for refused in (connected.post("/v1/completions", json=BABBLE), server.post("/v1/completions", BABBLE)):
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert connected.get("/health").status_code == 200
            worker.resume()
            assert chunks_of(payloads)[-1]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(HANG_SECONDS) == 0
        wait_for_exit(worker)


def test_drain_that_ends_gives_its_error_to_everybody_who_waits(tmp_path: Path, babbler: Path) -> None:
    """For a model that is being loaded, or for a worker; both workers are stopped."""
    other = make_random_llama(tmp_path / "other")
    with (
        running_server(tmp_path, default_model=babbler, available_models=other, drain_timeout_seconds=1) as server,
        ThreadPoolExecutor(2) as clients,
    ):
        working = server.worker()
        with server.stream("/v1/completions", BABBLE | {"max_tokens": 8000}) as payloads:
            next(payloads)
            working.suspend()
            body = BABBLE | {"model": "other"}
            waiting = [clients.submit(server.post, "/v1/completions", body | {"stream": on}) for on in (False, True)]
            _, loading = eventually(server.workers, lambda workers: len(workers) == 2)
            loading.suspend()
            server.process.terminate()
            for answer in (request.result() for request in waiting):
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert json.loads(list(payloads)[-1])["error"]["code"] == "not_ready"
        assert server.process.wait(HANG_SECONDS) == 0
        wait_for_exit(working)
        wait_for_exit(loading)
