"""The budget on a GPU is its memory, as the workers read it. No GPU is needed: what MLX tells of it is staged."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running_server import RunningServer, running_server

GB = 2**30


@pytest.fixture
def stage_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    def stage(**info: int) -> None:
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "staged_device"))
        monkeypatch.setenv("STAGED_DEVICE", json.dumps({"device_name": "staged", **info}))

    return stage


def limit_bytes(server: RunningServer) -> int:
    return int(httpx.get(f"{server.url}/admin/pool").json()["budget"]["limit_bytes"])


@pytest.mark.parametrize(
    ("info", "max_memory_gb", "limit"),
    [
        ({"total_memory": GB}, None, int(0.9 * GB)),
        ({"total_memory": 4096 * GB}, None, int(0.9 * 4096 * GB)),
        ({"total_memory": GB}, 0.5, GB // 2),
        ({"total_memory": GB}, 2, GB),
        ({"max_recommended_working_set_size": GB}, None, GB),
        ({"max_recommended_working_set_size": GB}, 2, 2 * GB),
    ],
)
def test_budget_follows_the_device_of_the_workers(
    tmp_path: Path, stage_device: Any, info: dict[str, int], max_memory_gb: float | None, limit: int
) -> None:
    stage_device(**info)
    settings: dict[str, Any] = {} if max_memory_gb is None else {"max_memory_gb": max_memory_gb}
    with running_server(tmp_path, **settings) as server:
        assert limit_bytes(server) == limit
        assert server.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"


def test_model_that_does_not_fit_into_the_gpu_is_refused_with_the_numbers(tmp_path: Path, stage_device: Any) -> None:
    stage_device(total_memory=4 * 2**20)
    with running_server(tmp_path, wait=False) as server:
        server.wait_for_log("Workers compute on cuda; the memory budget is 3.60 MB")
        refused = server.post("/v1/completions", {"model": "demo", "prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "insufficient_memory")
        assert "of 3.60 MB in use" in refused.json()["error"]["message"]
        assert server.workers() == []


@pytest.mark.parametrize("wire_memory", [False, True])
def test_memory_is_wired_only_where_a_setting_asks_for_it(tmp_path: Path, stage_device: Any, wire_memory: bool) -> None:
    stage_device(max_recommended_working_set_size=GB)
    with running_server(tmp_path, wire_memory=wire_memory) as server:
        assert (f"wired {GB} bytes" in server.log.read_text()) == wire_memory
