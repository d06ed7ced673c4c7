"""Where the server may listen without keys, and keys that cannot be read: one line and status 2, or a loud warning."""

from pathlib import Path

import httpx
import pytest

from tests.e2e.test_start import COMMANDS, start
from tests.running_server import BACKEND, MODULE, running_server


@pytest.mark.parametrize("command", COMMANDS, ids=["module", "cli"])
def test_without_keys_the_server_does_not_listen_on_the_network(command: tuple[str, ...]) -> None:
    ended = start(command, host="0.0.0.0", port=0)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Refused to listen on 0.0.0.0 without API keys")
    assert "MLX_SERVER_API_KEYS" in line
    assert "--insecure-no-auth" in line


@pytest.mark.parametrize("host", ["::", ""])
def test_no_other_name_of_everywhere_is_a_way_around(host: str) -> None:
    assert "without API keys" in start(MODULE, host=host, port=0).stderr


def test_an_admin_key_alone_does_not_let_it_listen_there() -> None:
    assert start(MODULE, host="0.0.0.0", port=0, admin_key="sk-admin").returncode == 2


def test_who_means_it_is_warned_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BACKEND))
    command = (*COMMANDS[1], "--host", "0.0.0.0", "--insecure-no-auth")
    with running_server(tmp_path, wait=False, command=command) as running:
        running.wait_for_log("Listening")
        assert "WARNING" in running.log.read_text()
        assert "NO AUTHENTICATION" in running.log.read_text()
        assert httpx.get(f"{running.url}/health").status_code == 200


def test_with_keys_it_listens_everywhere_without_a_word(tmp_path: Path) -> None:
    with running_server(tmp_path, wait=False, host="0.0.0.0", api_keys="sk-1") as running:
        running.wait_for_log("Listening")
        assert "WARNING" not in running.log.read_text()


def test_localhost_is_this_machine(tmp_path: Path) -> None:
    with running_server(tmp_path, wait=False, host="localhost") as running:
        running.wait_for_log("Listening")


SECRET = "sk-äöü-7041"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"api_keys": f"anna={SECRET}"}, "api_keys"),
        ({"api_keys": "anna=sk 7041"}, "api_keys"),
        ({"api_keys": "sk-7041,bob=sk-7041"}, "api_keys"),
        ({"api_keys_file": "/no/such/file"}, "api_keys_file"),
        ({"api_keys_file": "/"}, "api_keys_file"),
        ({"api_keys_file": "/dev/null"}, "api_keys_file"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_cannot_be_meant_are_told_and_no_key_is_shown(settings: dict[str, object], name: str) -> None:
    ended = start(MODULE, port=0, **settings)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"Bad setting {name}: ")
    assert "7041" not in line
