"""Prefixes on disk, as a user has them: a server that ends, in whatever way, and another that goes on."""

import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.command_line.commands import mlx_manager
from tests.running_server import RunningServer, eventually, running_server, wait_for_exit

STORY = " ".join(f"Item {number} of the list has the price {7 * number}." for number in range(120))
FIRST = [{"role": "user", "content": STORY}]


def second(answer: str) -> list[dict[str, str]]:
    return [*FIRST, {"role": "assistant", "content": answer}, {"role": "user", "content": "And the next one?"}]


def with_disk(tmp_path: Path) -> AbstractContextManager[RunningServer]:
    """A server that keeps prefixes in `tmp_path / "prefixes"`."""
    return running_server(tmp_path, prefix_disk_gb=1, prefix_disk_folder=tmp_path / "prefixes")


def chat(server: RunningServer, messages: list[dict[str, str]]) -> tuple[str, int]:
    """The text, and how many tokens of the prompt were cached."""
    body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 24}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    answer = response.json()
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["message"]["content"], cached


def blocks(folder: Path) -> list[Path]:
    return list(folder.glob("*/*.safetensors"))


def disk_figures(server: RunningServer) -> dict[str, Any]:
    (model,) = [model for model in httpx.get(f"{server.url}/admin/pool").json()["models"] if model["id"] == "demo"]
    figures: dict[str, Any] = model["prefix_disk"]
    return figures


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Both answers of a server that keeps nothing on disk."""
    with running_server(tmp_path_factory.mktemp("plain")) as server:
        first, _ = chat(server, FIRST)
        return first, chat(server, second(first))[0]


def test_the_second_turn_after_a_restart_is_read_from_disk(tmp_path: Path, turns: tuple[str, str]) -> None:
    with with_disk(tmp_path) as server:
        assert chat(server, FIRST) == (turns[0], 0)
    with with_disk(tmp_path) as server:
        text, cached = chat(server, second(turns[0]))
        figures = eventually(lambda: disk_figures(server), lambda found: found["hits"] > 0)
        metrics = httpx.get(f"{server.url}/metrics").text
    assert text == turns[1]
    assert cached == figures["tokens"] >= 1024
    assert figures["read_bytes"] > 0
    assert figures["fault"] is None
    assert f'mlx_server_prefix_disk_tokens_total{{model="demo"}} {float(cached)}' in metrics
    assert 'mlx_server_prefix_disk_failed{model="demo"} 0.0' in metrics


@pytest.mark.slow
def test_prefixes_are_written_while_the_server_is_idle(tmp_path: Path, turns: tuple[str, str]) -> None:
    folder = tmp_path / "prefixes"
    with with_disk(tmp_path) as server:
        chat(server, FIRST)
        eventually(lambda: blocks(folder), bool)
        for process in server.workers():
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 3])
def test_a_killed_server_leaves_whole_blocks_that_the_next_one_uses(
    tmp_path: Path, turns: tuple[str, str], files: int
) -> None:
    """SIGKILL while the worker writes."""
    folder = tmp_path / "prefixes"
    with with_disk(tmp_path) as server:
        chat(server, FIRST)
        worker = server.worker()
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: blocks(folder), lambda found: len(found) >= files)
        worker.kill()
        server.process.kill()
        wait_for_exit(worker)
    assert mlx_manager("cache", "verify", MLX_SERVER_PREFIX_DISK_FOLDER=folder).returncode == 0
    with with_disk(tmp_path) as server:
        text, cached = chat(server, second(turns[0]))
    assert text == turns[1]
    assert cached >= 256 * files


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": FIRST},
    "/v1/completions": {"prompt": STORY},
    "/v1/responses": {"input": STORY},
    "/v1/messages": {"messages": FIRST, "max_tokens": 4},
}


def test_requests_of_every_protocol_can_keep_their_prompt_off_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    with with_disk(tmp_path) as server:
        for path, body in BODIES.items():
            for _ in range(2):
                response = server.post(path, {"model": "demo", "prompt_cache_retention": "in_memory", **body})
                assert response.status_code == 200, response.text
            response = server.post(path, {"model": "demo", "prompt_cache_retention": "ram", **body})
            assert response.status_code in (400, 422)
            assert "prompt_cache_retention" in response.text
    assert folder.exists()
    assert blocks(folder) == []


@pytest.mark.slow
def test_a_model_entry_keeps_its_prompts_off_the_disk_and_none_are_written_by_default(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    (tmp_path / "mlx-manager.toml").write_text('[[models]]\nid = "demo"\nprefix_disk = false\n')
    with with_disk(tmp_path) as server:
        chat(server, FIRST)
    (tmp_path / "mlx-manager.toml").unlink()
    with running_server(tmp_path, prefix_disk_folder=folder) as server:
        chat(server, FIRST)
    assert not folder.exists()


@pytest.mark.slow
def test_the_files_can_be_listed_verified_and_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    with with_disk(tmp_path) as server:
        chat(server, FIRST)
    listed = mlx_manager("cache", MLX_SERVER_PREFIX_DISK_FOLDER=folder).stdout
    assert "demo" in listed
    assert "yes" in listed
    blocks(folder)[0].write_bytes(b"damaged")
    verified = mlx_manager("cache", "verify", MLX_SERVER_PREFIX_DISK_FOLDER=folder)
    assert (verified.returncode, "1 of" in verified.stderr) == (1, True)
    assert mlx_manager("cache", "verify", MLX_SERVER_PREFIX_DISK_FOLDER=folder).returncode == 0
    assert "unknown" not in mlx_manager("cache", "clear", "unknown", MLX_SERVER_PREFIX_DISK_FOLDER=folder).stdout
    assert blocks(folder)
    assert mlx_manager("cache", "clear", "demo", MLX_SERVER_PREFIX_DISK_FOLDER=folder).returncode == 0
    assert blocks(folder) == []
