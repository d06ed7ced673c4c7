"""A rank that dies or stops ends its group, which starts again. Other models never notice."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.running_server import HANG_SECONDS, RunningServer, eventually, running_server

QUIET_SECONDS = 6
"""The watchdog's limit in these tests."""
LIMIT_SECONDS = 60
"""Against hanging: a kill is noticed in milliseconds."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, babbler: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("ranks")
    config = folder / "mlx-manager.toml"
    config.write_text(f'[[models]]\nid = "group"\npath = "{babbler}"\nranks = 2\n')
    bounds = {"worker_timeout_seconds": QUIET_SECONDS}
    with running_server(folder, config=config, default_model="group", preload="demo", bounds=bounds) as running:
        yield running


def ranks_of(server: RunningServer) -> list[psutil.Process]:
    """Rank 0 and rank 1, which started in this order; the other worker has the demo model."""
    server.wait_until_ready()
    pool = httpx.get(f"{server.url}/admin/pool", timeout=HANG_SECONDS).json()
    demo = next(model["pid"] for model in pool["models"] if model["id"] == "demo")
    workers = eventually(lambda: server.workers(), lambda found: len(found) == 3)
    return sorted((one for one in workers if one.pid != demo), key=lambda worker: worker.create_time())


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("rank", [0, 1])
def test_lost_rank_fails_the_request_by_name_and_the_next_request_is_answered(
    server: RunningServer, rank: int, fault: signal.Signals
) -> None:
    ranks = ranks_of(server)
    others = {worker.pid for worker in server.workers()} - {one.pid for one in ranks}
    body = {"model": "group", "messages": [{"role": "user", "content": "Babble"}], "temperature": 0, "max_tokens": 4000}
    with server.stream("/v1/chat/completions", body) as payloads:
        next(payloads)
        began = time.monotonic()
        ranks[rank].send_signal(fault)
        *_, last = payloads
    seconds = time.monotonic() - began
    assert "engine_failed" in last
    assert f"Rank {rank} of model 'group'" in last
    assert ("SIGKILL" if fault == signal.SIGKILL else "has not responded for") in last
    assert seconds < LIMIT_SECONDS
    assert server.chat("What is the capital of France?", max_tokens=4)["choices"]
    server.wait_until_ready()
    answer = server.chat("Babble", model="group", max_tokens=3)
    assert answer["usage"]["completion_tokens"] == 3
    assert not {one.pid for one in ranks} & {worker.pid for worker in server.workers()}
    assert others <= {worker.pid for worker in server.workers()}


def test_rank_that_is_lost_while_idle_starts_again_without_a_request(server: RunningServer) -> None:
    ranks = ranks_of(server)
    ranks[1].send_signal(signal.SIGSTOP)
    eventually(lambda: {one.pid for one in ranks} & {worker.pid for worker in server.workers()}, lambda left: not left)
    assert len(ranks_of(server)) == 2


def test_shutdown_ends_all_ranks_without_a_fault(tmp_path: Path, babbler: Path) -> None:
    with running_server(tmp_path, default_model=babbler, ranks=2) as server:
        ranks = eventually(lambda: server.workers(), lambda found: len(found) == 2)
        log = server.log
    assert not any(rank.is_running() for rank in ranks)
    assert "ERROR" not in log.read_text()
