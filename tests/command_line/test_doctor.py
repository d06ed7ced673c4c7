"""`doctor`: a healthy machine is ok, and what is broken is named with its remedy."""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.command_line.commands import MLX_MANAGER, environment, mlx_manager
from tests.command_line.stand_in import stand_in
from tests.running_server import HANG_SECONDS, RunningServer


def examine(*, status: int, server: RunningServer | None = None, **variables: Any) -> dict[str, dict[str, Any]]:
    """The checks by their names."""
    ran = mlx_manager("doctor", "--json", server=server, **variables)
    assert ran.returncode == status, ran.stdout + ran.stderr
    return {check["name"]: check for check in json.loads(ran.stdout)}


def test_doctor_finds_this_machine_fit_and_the_server_that_runs(server: RunningServer) -> None:
    checks = examine(status=0, server=server)
    assert {"platform", "versions", "MLX", "BLAS", "memory", "open files", "port", "model folder"} <= checks.keys()
    assert "a server runs at" in checks["port"]["found"]
    assert "GFLOP/s" in checks["BLAS"]["found"]
    assert "demo" in checks["default model"]["found"]


@pytest.mark.parametrize("replies", [{}, {"/health": {"status": "ok"}}], ids=["no health", "another server"])
def test_doctor_names_a_port_that_somebody_else_has(replies: dict[str, object]) -> None:
    with stand_in(replies) as url:
        checks = examine(status=1, MLX_SERVER_PORT=httpx.URL(url).port)
    assert checks["port"]["state"] == "broken"
    assert "--port" in checks["port"]["remedy"]


def test_an_mlx_that_kills_its_process_is_a_finding_and_the_other_checks_go_on(tmp_path: Path) -> None:
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "core.py").write_text("import os, sys\nprint('no driver', file=sys.stderr)\nos.abort()\n")
    path = environment()["PYTHONPATH"]
    checks = examine(status=1, PYTHONPATH=f"{path}:{tmp_path}", MLX_SERVER_PORT=0)
    assert checks["MLX"]["state"] == "broken"
    assert "no driver" in checks["MLX"]["found"]
    assert "BLAS" not in checks
    assert checks["port"]["state"] == "ok"


def test_bad_settings_are_a_finding() -> None:
    checks = examine(status=1, MLX_SERVER_MAX_QUEUE=-1)
    assert checks["settings"]["state"] == "broken"


def test_too_few_descriptors_are_warned_of_with_the_command_that_helps() -> None:
    ran = subprocess.run(
        ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *MLX_MANAGER, "doctor", "--json"],
        env=environment(MLX_SERVER_PORT=0),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    (check,) = [check for check in json.loads(ran.stdout) if check["name"] == "open files"]
    assert (check["state"], check["found"]) == ("warning", "at most 256")
    assert "ulimit -n" in check["remedy"]


def test_a_limit_that_the_server_raises_itself_is_fine() -> None:
    ran = subprocess.run(
        ["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", *MLX_MANAGER, "doctor", "--json"],
        env=environment(MLX_SERVER_PORT=0),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    (check,) = [check for check in json.loads(ran.stdout) if check["name"] == "open files"]
    assert (check["state"], check["found"]) == ("ok", "at most 256, which the server raises to 1536")


def test_a_default_model_without_weights_and_one_that_is_too_large_are_broken(tmp_path: Path, babbler: Path) -> None:
    checks = examine(status=1, MLX_SERVER_PORT=0, MLX_SERVER_DEFAULT_MODEL=tmp_path)
    assert "no weights" in checks["default model"]["found"]
    checks = examine(status=1, MLX_SERVER_PORT=0, MLX_SERVER_DEFAULT_MODEL=babbler, MLX_SERVER_MAX_MEMORY_GB=0.0001)
    assert "too large" in checks["default model"]["found"]


def test_people_get_a_table() -> None:
    ran = mlx_manager("doctor", MLX_SERVER_PORT=0)
    assert ran.stdout.splitlines()[0].split() == ["CHECK", "STATE", "FOUND", "REMEDY"]
    assert ran.returncode == 0
