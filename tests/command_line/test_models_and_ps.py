"""`models` and `ps`: what is shown of a server's models, of its pool, and of the settings where none runs."""

import json
import re
from pathlib import Path
from typing import Any

from mlx_manager.mlx_server.models.weights import weights_size
from tests.command_line.commands import environment, in_terminal, mlx_manager
from tests.command_line.stand_in import stand_in
from tests.running_server import RunningServer

LISTED = {
    "object": "list",
    "data": [
        {
            "id": "large",
            "object": "model",
            "size_bytes": 5 * 2**30,
            "quantization": "4-bit",
            "context_length": 131072,
            "capabilities": {"tools": "prompted"},
        },
        {
            "id": "demo",
            "object": "model",
            "kind": "generate",
            "size_bytes": 5775872,
            "loaded": True,
            "quantization": None,
        },
        {"id": "bare", "object": "model"},
    ],
}
POOL: dict[str, Any] = {
    "draining": False,
    "budget": {"limit_bytes": 4 * 2**30, "used_bytes": 12582912, "max_models": 4, "models": 2},
    "models": [
        {
            "id": "demo",
            "state": "loaded",
            "error": None,
            "progress": None,
            "memory": {"active_bytes": 11 * 2**20, "cache_bytes": 2**20, "limit_bytes": 2**30},
            "sequences": {"running": 2, "waiting": 1},
            "tokens_per_second": 241.0,
            "pinned": False,
            "expires_in": 272.4,
            "pid": 4711,
            "ranks": [{"rank": 0, "memory_bytes": 7 * 2**20}, {"rank": 1, "memory_bytes": 5 * 2**20}],
        },
        {
            "id": "large",
            "state": "loading",
            "error": None,
            "progress": {"stage": "downloading", "done_bytes": 30, "total_bytes": 120},
            "memory": None,
            "sequences": {"running": 0, "waiting": 3},
            "tokens_per_second": 0.0,
            "pinned": True,
            "expires_in": None,
            "pid": None,
            "ranks": [],
        },
        {
            "id": "broken",
            "state": "failed",
            "error": "The weights are not there.",
            "progress": None,
            "memory": None,
            "sequences": {"running": 0, "waiting": 0},
            "tokens_per_second": 0.0,
            "pinned": False,
            "expires_in": None,
            "pid": None,
            "ranks": [],
        },
        {
            "id": "bare",
            "state": "unloaded",
            "error": None,
            "progress": None,
            "memory": None,
            "sequences": {"running": 0, "waiting": 0},
            "tokens_per_second": 0.0,
            "pinned": False,
            "expires_in": None,
            "pid": None,
            "ranks": [],
        },
    ],
}


def cells(output: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in output.splitlines()]


def test_models_of_a_running_server_are_listed_in_its_order(server: RunningServer) -> None:
    ran = mlx_manager("models", server=server)
    assert (ran.returncode, ran.stderr) == (0, "")
    header, *rows = cells(ran.stdout)
    assert header == ["MODEL", "KIND", "SIZE", "QUANTISATION", "CONTEXT", "TOOLS", "FITS", "LOADED"]
    told = [(row[0], row[1], row[5]) for row in rows]
    assert told == [("demo", "generate", "native"), ("babbler", "generate", "native"), ("short", "generate", "-")]


def test_models_without_a_server_are_those_that_serve_would_offer(babbler: Path) -> None:
    ran = mlx_manager("models", "--json", MLX_SERVER_AVAILABLE_MODELS=f"{babbler},no-such/model", HF_HOME="/nowhere")
    assert ran.returncode == 0
    assert "No server answers at http://127.0.0.1:9" in ran.stderr
    listed = {model["id"]: model for model in json.loads(ran.stdout)}
    assert list(listed) == ["demo", "babbler", "no-such/model"]
    assert listed["babbler"]["size_bytes"] == weights_size(babbler).memory_bytes
    assert listed["babbler"]["context_length"] == 8192
    assert listed["babbler"]["tools"] == "native"
    assert [listed[one]["kind"] for one in listed] == ["generate", "generate", None]
    assert listed["no-such/model"]["tools"] is None
    assert listed["babbler"]["fits"] is True
    assert listed["babbler"]["loaded"] is False
    assert listed["no-such/model"]["size_bytes"] is None


def test_a_model_larger_than_the_memory_for_models_does_not_fit(babbler: Path) -> None:
    ran = mlx_manager("models", "--json", MLX_SERVER_DEFAULT_MODEL=babbler, MLX_SERVER_MAX_MEMORY_GB=0.0001)
    assert json.loads(ran.stdout)[0]["fits"] is False


def test_models_shows_what_the_server_tells_and_a_dash_for_what_it_does_not() -> None:
    with stand_in({"/v1/models": LISTED, "/admin/pool": POOL}) as url:
        _, *rows = cells(mlx_manager("models", "--base-url", f"{url}/v1").stdout)
    assert rows == [
        ["large", "-", "5.0 GB", "4-bit", "131,072", "prompted", "no", "-"],
        ["demo", "generate", "5.5 MB", "-", "-", "-", "yes", "yes"],
        ["bare", "-", "-", "-", "-", "-", "-", "-"],
    ]


def test_a_terminal_gets_colours_and_a_pipe_gets_none() -> None:
    with stand_in({"/v1/models": LISTED, "/admin/pool": POOL}) as url:
        assert "\x1b" not in mlx_manager("models", "--base-url", url).stdout
        with in_terminal("models", "--base-url", url, environment=environment()) as terminal:
            assert "\x1b[32myes" in terminal.wait_for("bare")


def test_ps_shows_what_is_loaded_or_on_its_way_or_failed() -> None:
    with stand_in({"/admin/pool": POOL}) as url:
        ran = mlx_manager("ps", "--base-url", url)
    assert cells(ran.stdout) == [
        ["MODEL", "STATE", "MEMORY", "RUNNING", "WAITING", "TOK/S", "LEAVES IN", "PID"],
        ["demo", "loaded", "12.0 MB", "2", "1", "241.0", "272 s", "4711"],
        ["large", "downloading 25%", "-", "0", "3", "0.0", "pinned", "-"],
        ["broken", "failed", "-", "0", "0", "0.0", "-", "-"],
    ]
    assert "12.0 MB of 4.0 GB used, 2 of at most 4 models." in ran.stderr
    assert "demo: rank 0 uses 7.0 MB, rank 1 uses 5.0 MB." in ran.stderr
    assert "broken: The weights are not there." in ran.stderr


def test_ps_gives_scripts_all_that_the_server_tells() -> None:
    with stand_in({"/admin/pool": POOL}) as url:
        assert json.loads(mlx_manager("ps", "--json", "--base-url", url).stdout) == POOL


def test_ps_of_a_server_that_has_no_pool_says_so() -> None:
    with stand_in({"/v1/models": LISTED}) as url:
        ran = mlx_manager("ps", "--base-url", url)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "has no /admin/pool" in ran.stderr
