"""The real server with several models and a settings file: listing, keep_alive, and the admin API."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import pytest

from tests.running_server import HANG_SECONDS, RunningServer, eventually, running_server
from tests.small_models import make_lora, make_random_model

KEY = "opensesame"
SHORT = {"prompt": "x", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`demo`, `qwen` with a context of 8,192 tokens in the models folder, and `tuned`: `base` with a LoRA adapter."""
    folder = tmp_path_factory.mktemp("several")
    make_random_model(folder / "models" / "qwen", model_type="qwen2", context_length=8192, chat_template=False)
    base = make_random_model(folder / "base")
    make_lora(folder / "adapter", base)
    (folder / "mlx-manager.toml").write_text(
        f"""
        models_dir = "{folder / "models"}"
        keep_alive = "1h"
        admin_key = "wrong"
        [[models]]
        id = "base"
        path = "{base}"
        aliases = ["gpt-4o"]
        context_length = 300
        max_tokens = 5
        [models.sampling]
        temperature = 0
        [[models]]
        id = "tuned"
        path = "{base}"
        adapter = "{folder / "adapter"}"
        pin = true
        ttl = -1
        """
    )
    with running_server(folder, admin_key=KEY, hub_cache=False) as running:
        yield running


def admin(server: RunningServer, model_id: str, action: str, key: str = KEY) -> httpx.Response:
    return httpx.post(
        f"{server.url}/admin/models/{model_id}/{action}",
        headers={"Authorization": f"Bearer {key}"},
        timeout=HANG_SECONDS,
    )


def pool(server: RunningServer) -> dict[str, Any]:
    body: dict[str, Any] = httpx.get(
        f"{server.url}/admin/pool", headers={"Authorization": f"Bearer {KEY}"}, timeout=HANG_SECONDS
    ).json()
    return body


def row(server: RunningServer, model_id: str) -> dict[str, Any]:
    return next(model for model in pool(server)["models"] if model["id"] == model_id)


def test_models_are_listed_with_what_their_files_tell(several: RunningServer) -> None:
    admin(several, "base", "unload")
    listed = {model["id"]: model for model in httpx.get(f"{several.url}/v1/models").json()["data"]}
    assert set(listed) == {"demo", "base", "tuned", "qwen", "mlx-community/Llama-3.2-3B-Instruct-4bit"}
    demo = listed["demo"]
    assert demo["loaded"] is True
    told = {"chat": True, "tools": "native", "reasoning": True, "structured_output": True}
    assert demo["capabilities"] == demo["capabilities"] | told
    qwen = listed["qwen"]
    assert (qwen["object"], qwen["family"], qwen["context_length"]) == ("model", "qwen", 8192)
    assert qwen["quantization"] is None
    assert qwen["capabilities"]["chat"] is False
    assert qwen["size_bytes"] > 100_000
    assert listed["mlx-community/Llama-3.2-3B-Instruct-4bit"]["size_bytes"] is None
    assert (listed["base"]["aliases"], listed["base"]["loaded"]) == (["gpt-4o"], False)
    assert httpx.get(f"{several.url}/v1/models/gpt-4o").json() == listed["base"]


@pytest.mark.parametrize("model_id", ["gpt-4", "../../etc", "%2Fetc%2Fpasswd", "~", "file:///etc"])
def test_unknown_ids_and_paths_are_not_found(several: RunningServer, model_id: str) -> None:
    assert several.post("/v1/completions", SHORT | {"model": model_id}).status_code == 404
    response = httpx.get(f"{several.url}/v1/models/{model_id}")
    assert response.status_code == 404


def test_settings_of_an_entry_are_the_requests_defaults(several: RunningServer) -> None:
    answers = [several.post("/v1/completions", {"model": "gpt-4o", "prompt": "x"}) for _ in range(2)]
    assert answers[0].json()["choices"][0]["text"] == answers[1].json()["choices"][0]["text"]
    chat = several.chat("Hello", model="base")
    assert chat["usage"]["completion_tokens"] == 5
    long = several.post("/v1/completions", {"model": "base", "prompt": "x " * 400})
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_an_adapter_changes_the_answers_of_its_entry_alone(several: RunningServer) -> None:
    texts = {
        model_id: several.post("/v1/completions", SHORT | {"model": model_id}).json()["choices"][0]["text"]
        for model_id in ("base", "tuned")
    }
    assert texts["base"] != texts["tuned"]


def uses_what_its_models_hold(status: dict[str, Any]) -> bool:
    """Once no worker reports between the two readings."""
    memory = [model["memory"] for model in status["models"] if model["memory"] is not None]
    held = sum(share["active_bytes"] + share["cache_bytes"] for share in memory)
    return bool(abs(status["budget"]["used_bytes"] - held) < 0.05 * held)


def test_pool_tells_budget_memory_and_generations(several: RunningServer) -> None:
    with several.stream("/v1/completions", SHORT | {"model": "qwen", "max_tokens": 4000}) as payloads:
        next(payloads)
        running = row(several, "qwen")
        assert running["sequences"]["running"] + running["sequences"]["waiting"] == 1
        assert running["expires_in"] is None
        list(payloads)
    eventually(lambda: row(several, "qwen"), lambda model: bool(model["sequences"] == {"running": 0, "waiting": 0}))
    status, model = pool(several), row(several, "qwen")
    assert model["state"] == "loaded"
    assert model["memory"]["active_bytes"] >= model["size_bytes"] > 0
    assert 3500 < model["expires_in"] <= 3600 == model["ttl"]
    assert status["draining"] is False
    assert 0 < status["budget"]["promised_bytes"] < status["budget"]["limit_bytes"]
    assert status["budget"]["models"] == sum(model["memory"] is not None for model in status["models"])
    memory = [model["memory"] for model in status["models"] if model["memory"] is not None]
    eventually(lambda: pool(several), uses_what_its_models_hold)
    assert sum(share["limit_bytes"] for share in memory) <= status["budget"]["limit_bytes"]


def test_models_are_loaded_unloaded_and_pinned_by_the_admin(several: RunningServer) -> None:
    assert admin(several, "base", "load").json()["state"] == "loaded"
    pid = row(several, "base")["pid"]
    assert pid in [worker.pid for worker in several.workers()]
    unloaded = admin(several, "gpt-4o", "unload")
    assert (unloaded.status_code, unloaded.json()["id"], unloaded.json()["state"]) == (200, "base", "unloaded")
    assert pid not in [worker.pid for worker in several.workers()]
    assert admin(several, "base", "pin").json()["pinned"] is True
    assert admin(several, "base", "unpin").json()["pinned"] is False
    assert row(several, "tuned")["pinned"] is True
    for action in ("load", "unload", "pin", "unpin"):
        missing = admin(several, "nobody", action)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}])
def test_admin_asks_for_its_key(several: RunningServer, headers: dict[str, str]) -> None:
    response = httpx.get(f"{several.url}/admin/pool", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.post(f"{several.url}/admin/models/demo/unload", headers=headers).status_code == 401


def test_keep_alive_of_a_request_unloads_the_model_after_the_answer(several: RunningServer) -> None:
    answer = several.post("/v1/completions", SHORT | {"model": "qwen", "keep_alive": 0})
    assert answer.status_code == 200
    eventually(lambda: row(several, "qwen"), lambda model: bool(model["state"] == "unloaded"))
    several.post("/v1/completions", SHORT | {"model": "qwen", "keep_alive": "10m"})
    assert 590 < row(several, "qwen")["expires_in"] <= 600
    refused = several.post("/v1/completions", SHORT | {"model": "qwen", "keep_alive": "soon"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "keep_alive")


def test_documentation_describes_the_admin_api_with_an_example(several: RunningServer) -> None:
    spec = httpx.get(f"{several.url}/openapi.json").json()
    assert {path for path in spec["paths"] if path.startswith("/admin")} == {
        "/admin/pool",
        "/admin/reload",
        *(f"/admin/models/{{model_id}}/{action}" for action in ("load", "unload", "pin", "unpin")),
    }
    assert spec["components"]["schemas"]["PoolStatus"]["examples"]


def test_unknown_setting_in_the_file_ends_the_start_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlx-manager.toml").write_text('[[models]]\nid = "a"\npaht = "."')
    with running_server(tmp_path, wait=False) as server:
        assert server.process.wait(HANG_SECONDS) == 2
        assert server.log.read_text().strip() == "Bad setting models.0.paht: there is no such setting. Remove it."


def test_lora_that_does_not_fit_is_a_clear_error(tmp_path: Path) -> None:
    base = make_random_model(tmp_path / "base")
    make_lora(tmp_path / "adapter", base)
    mx.save_safetensors(str(tmp_path / "adapter" / "adapters.safetensors"), {"of.another.model": mx.zeros((2, 2))})
    (tmp_path / "mlx-manager.toml").write_text(f'[[models]]\nid = "b"\npath = "{base}"\nadapter = "./adapter"')
    with running_server(tmp_path) as server:
        refused = server.post("/v1/completions", SHORT | {"model": "b"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_load_failed")
        assert "of.another.model" in refused.json()["error"]["message"]
