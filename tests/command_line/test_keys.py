"""Commands at a server with keys: one that is given, one of the settings, one of the command's own server."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.command_line.commands import mlx_manager
from tests.running_server import RunningServer, running_server

KEYS: dict[str, Any] = {"MLX_SERVER_API_KEYS": "anna=sk-anna-7041", "MLX_SERVER_ADMIN_KEY": "sk-admin-5512"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(
        tmp_path_factory.mktemp("guarded"), api_keys="anna=sk-anna-7041", admin_key="sk-admin-5512"
    ) as running:
        yield running


def test_a_command_without_a_key_is_told_to_send_one(guarded: RunningServer) -> None:
    for command in (["ps"], ["models"], ["chat", "demo"], ["bench"]):
        ended = mlx_manager(*command, server=guarded, stdin="Hi")
        assert ended.returncode == 1
        assert "requires an API key" in ended.stderr


def test_the_keys_of_the_settings_open_the_server_of_the_settings(guarded: RunningServer) -> None:
    assert "demo" in mlx_manager("ps", server=guarded, **KEYS).stdout
    assert "demo" in mlx_manager("models", server=guarded, **KEYS).stdout
    users: dict[str, Any] = {"MLX_SERVER_API_KEYS": KEYS["MLX_SERVER_API_KEYS"]}
    answer = mlx_manager("chat", "demo", server=guarded, stdin="Count to 3", **users)
    assert answer.stdout == "1, 2, 3\n"


def test_they_are_not_sent_to_a_server_that_the_command_names(guarded: RunningServer) -> None:
    assert "requires an API key" in mlx_manager("ps", "--base-url", guarded.url, **KEYS).stderr
    named = mlx_manager("ps", "--base-url", guarded.url, "--api-key", "sk-admin-5512")
    assert "demo" in named.stdout


def test_a_chat_with_a_server_of_its_own_has_the_key_to_it() -> None:
    answer = mlx_manager("chat", "demo", stdin="Count to 3", **KEYS)
    assert (answer.returncode, answer.stdout) == (0, "1, 2, 3\n"), answer.stderr


def test_the_doctor_finds_a_server_that_has_keys(guarded: RunningServer) -> None:
    assert "a server runs at" in mlx_manager("doctor", server=guarded, **KEYS).stdout
