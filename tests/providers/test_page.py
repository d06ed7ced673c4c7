"""The examples of docs/providers.md, run as they are printed against mlx-lm's server and against this one."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlx_manager.providers
from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.upstream_settings import UpstreamSettings
from tests.providers.scripted_llama import ANSWER
from tests.providers.upstreams import CACHED, Upstream
from tests.running_server import BACKEND, HANG_SECONDS, RunningServer

PAGE = Path(__file__).parents[2] / "docs" / "providers.md"


def run_example(containing: str, **environment: str) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if containing in block]
    return subprocess.run(
        [sys.executable, "-c", block],
        env={**os.environ, "PYTHONPATH": str(BACKEND), **environment},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    ).stdout


def test_agent_counts_to_five_on_mlx_lm(mlx_lm_server: Upstream) -> None:
    assert run_example("run_stream", MLXLM_BASE_URL=mlx_lm_server.url) == "1, 2, 3, 4, 5"


def test_agent_counts_to_five_on_this_server(server: RunningServer) -> None:
    assert run_example("run_stream", MLXLM_BASE_URL=f"{server.url}/v1") == "1, 2, 3, 4, 5"


def test_agent_calls_its_tool_on_mlx_lm(mlx_lm_server: Upstream, scripted_llama: Path) -> None:
    said = run_example("tool_plain", MLXLM_BASE_URL=mlx_lm_server.url, MLXLM_MODEL_NAME=str(scripted_llama))
    assert said.strip() == ANSWER


def test_health_check_finds_the_model(mlx_lm_server: Upstream) -> None:
    said = run_example("mlxlm_health_check", MLXLM_BASE_URL=mlx_lm_server.url)
    assert said.split() == ["True", mlx_lm_server.model_id, "None"]


def test_client_lists_the_models(mlx_lm_server: Upstream) -> None:
    said = run_example("MlxLmClient", MLXLM_BASE_URL=mlx_lm_server.url)
    assert said.startswith("True ")
    assert CACHED[0] in said


@pytest.mark.parametrize("name", ["LlamaCppSettings", "MlxLmSettings"])
def test_settings_table_has_every_setting(name: str) -> None:
    settings = getattr(mlx_manager.providers, name)
    for field in settings.model_fields:
        assert f"`{settings.model_config['env_prefix']}{field.upper()}`" in PAGE.read_text()


def test_upstreams_are_the_same_as_json_and_as_toml() -> None:
    """Both are usable settings."""
    (shell,) = re.findall(r"^```sh\n(export MLX_SERVER_UPSTREAMS.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (table,) = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    given = {name.lower(): value for name, value in re.findall(r"MLX_SERVER_(\w+)='(.*?)'", shell, re.DOTALL)}
    from_json = MLXServerSettings.model_validate(given)
    from_toml = MLXServerSettings.model_validate(tomllib.loads(table))
    assert (from_json.upstreams, from_json.fallbacks) == (from_toml.upstreams, from_toml.fallbacks)
    assert [upstream.prefix_of_ids for upstream in from_toml.upstreams] == ["gpu/", "llama:"]


@pytest.mark.parametrize("key", UpstreamSettings.model_fields)
def test_upstreams_table_has_every_key(key: str) -> None:
    assert f"\n| `{key}` | " in PAGE.read_text()
