"""More models than places: requests wait for their model's, and what ends their waits."""

import contextlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.running_server import HANG_SECONDS, RunningServer, chunks_of, eventually, running_server
from tests.small_models import make_random_llama

SHORT = {"model": "babbler", "prompt": "x", "temperature": 0, "max_tokens": 4}
OTHER = SHORT | {"model": "other"}
REQUESTS = 30


@contextlib.contextmanager
def one_place(tmp_path: Path, babbler: Path) -> Iterator[RunningServer]:
    other = make_random_llama(tmp_path / "other")
    with running_server(tmp_path, default_model=babbler, available_models=other, max_models=1) as server:
        yield server


def metric(server: RunningServer, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def pool_model(server: RunningServer, model_id: str) -> dict[str, Any]:
    models: list[dict[str, Any]] = httpx.get(f"{server.url}/admin/pool").json()["models"]
    return next(model for model in models if model["id"] == model_id)


def is_waiting(server: RunningServer) -> bool:
    progress = pool_model(server, "other")["progress"]
    return progress is not None and progress["stage"] == "waiting" and progress["total_bytes"] > 0


def test_two_clients_of_two_models_are_all_answered_and_cause_few_loads(tmp_path: Path, babbler: Path) -> None:
    def ask(server: RunningServer, body: dict[str, Any]) -> list[int]:
        return [server.post("/v1/completions", body).status_code for _ in range(REQUESTS)]

    with one_place(tmp_path, babbler) as server, ThreadPoolExecutor(2) as clients:
        asking = [clients.submit(ask, server, body) for body in (SHORT, OTHER)]
        assert [status for client in asking for status in client.result()] == [200] * 2 * REQUESTS
        assert metric(server, "mlx_server_model_load_seconds_count") <= 2 * REQUESTS / 5
        assert metric(server, "mlx_server_model_wait_seconds_sum") > 0
        assert "waits for a place. Models in use: babbler" in server.log.read_text()


def test_client_that_leaves_waits_no_more_and_the_model_that_runs_takes_requests_again(
    tmp_path: Path, babbler: Path
) -> None:
    content = json.dumps(OTHER).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    with one_place(tmp_path, babbler) as server:
        worker = server.worker()
        with server.stream("/v1/completions", SHORT | {"max_tokens": 2000}) as payloads:
            next(payloads)
            worker.suspend()
            with socket.create_connection((server.host, server.port)) as client:
                client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
                eventually(lambda: is_waiting(server), bool)
            eventually(lambda: pool_model(server, "other")["state"], lambda state: state == "unloaded")
            worker.resume()
            assert server.post("/v1/completions", SHORT).status_code == 200
            assert chunks_of(payloads)[-1]["choices"][0]["finish_reason"] == "length"
        assert server.worker().pid == worker.pid


def test_drain_ends_the_waits_and_lets_what_runs_end(tmp_path: Path, babbler: Path) -> None:
    with one_place(tmp_path, babbler) as server, ThreadPoolExecutor(1) as client:
        worker = server.worker()
        with server.stream("/v1/completions", SHORT | {"max_tokens": 500}) as payloads:
            next(payloads)
            worker.suspend()
            waiting = client.submit(server.post, "/v1/completions", OTHER)
            eventually(lambda: is_waiting(server), bool)
            server.process.terminate()
            answer = waiting.result()
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            worker.resume()
            assert chunks_of(payloads)[-1]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(HANG_SECONDS) == 0


def test_unloading_the_model_in_the_way_or_the_one_that_waits_ends_the_wait(tmp_path: Path, babbler: Path) -> None:
    with (
        one_place(tmp_path, babbler) as server,
        ThreadPoolExecutor(1) as client,
        server.stream("/v1/completions", SHORT | {"max_tokens": 8000}) as payloads,
    ):
        next(payloads)
        server.worker().suspend()
        waiting = client.submit(server.post, "/v1/completions", OTHER)
        eventually(lambda: is_waiting(server), bool)
        httpx.post(f"{server.url}/admin/models/other/unload").raise_for_status()
        refused = waiting.result()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        waiting = client.submit(server.post, "/v1/completions", OTHER)
        eventually(lambda: is_waiting(server), bool)
        server.worker().resume()
        httpx.post(f"{server.url}/admin/models/babbler/unload", timeout=HANG_SECONDS).raise_for_status()
        assert waiting.result().status_code == 200
