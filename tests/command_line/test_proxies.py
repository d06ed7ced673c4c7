"""Proxies that the environment names: for other machines, never for this one."""

import asyncio
import urllib.parse
from pathlib import Path

import pytest

from mlx_manager.providers.base import ModelError
from mlx_manager.providers.llamacpp import LlamaCppClient, create_llamacpp_model
from mlx_manager.providers.settings import LlamaCppSettings
from mlx_manager.proxies import is_this_machine
from tests.command_line.commands import mlx_manager
from tests.command_line.hub import REPO, running_hub
from tests.running_server import RunningServer

SOCKS = {"ALL_PROXY": "socks5://127.0.0.1:9"}
PROXIES = [
    {"http_proxy": "http://127.0.0.1:9"},
    {"ALL_PROXY": "http://127.0.0.1:9"},
    SOCKS,
    {"all_proxy": "nonsense://x"},
]


def use(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


COMMANDS = [("ps",), ("models",), ("chat", "demo"), ("bench", "--clients", "1", "--rounds", "1"), ("ps", "--base-url")]


@pytest.mark.parametrize("variables", PROXIES, ids=lambda variables: "=".join(*variables.items()))
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_server_on_this_machine_is_asked_directly(
    server: RunningServer, command: tuple[str, ...], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(variables, monkeypatch)
    arguments = [*command, server.url.replace("127.0.0.1", "localhost")] if command[-1] == "--base-url" else command
    ran = mlx_manager(*arguments, server=server, stdin="Count to 3")
    assert ran.returncode == 0, ran.stderr


def test_a_chat_starts_a_server_of_its_own_whatever_the_proxy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    use(SOCKS, monkeypatch)
    ran = mlx_manager("chat", "demo", stdin="Count to 3")
    assert (ran.returncode, ran.stdout.strip()) == (0, "1, 2, 3"), ran.stderr


def test_doctor_finds_the_server_that_runs(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use(SOCKS, monkeypatch)
    ran = mlx_manager("doctor", server=server)
    assert f"a server runs at 127.0.0.1:{server.port}" in ran.stdout


@pytest.mark.parametrize("command", [("ps", "--base-url", "http://gpu.example:8000"), ("pull", "org/model")])
def test_a_socks_proxy_without_its_package_is_told_in_one_sentence(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(SOCKS, monkeypatch)
    ran = mlx_manager(*command)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith(
        "Error: The proxy of the environment (ALL_PROXY) cannot be used: SOCKS needs the package socksio."
    )
    assert "httpx[socks]" in line


def test_a_hub_on_this_machine_is_asked_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(SOCKS, monkeypatch)
    with running_hub({"config.json": b"{}"}) as hub:
        ran = mlx_manager("pull", REPO, HF_ENDPOINT=hub.url, HF_HOME=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (Path(ran.stdout.strip()) / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("variables", PROXIES, ids=lambda variables: "=".join(*variables.items()))
def test_providers_ask_this_machine_directly(
    server: RunningServer, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(variables, monkeypatch)
    settings = LlamaCppSettings(base_url=f"{server.url}/v1")

    async def models() -> list[str]:
        async with LlamaCppClient(settings.base_url) as client:
            return [str(model["id"]) for model in await client.fetch_models()]

    assert "demo" in asyncio.run(models())
    assert create_llamacpp_model("demo", settings).model_name == "demo"


def test_a_provider_elsewhere_says_what_its_proxy_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    use(SOCKS, monkeypatch)
    settings = LlamaCppSettings(base_url="http://gpu.example:8080/v1")
    for make in (
        lambda: LlamaCppClient(settings.base_url),
        lambda: create_llamacpp_model("demo", settings),
    ):
        with pytest.raises(ModelError, match="SOCKS needs the package socksio"):
            make()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("a.localhost", True), ("LOCALHOST.", True), ("127.8.0.1", True), ("[::1]", True),
     ("0.0.0.0", True), ("[::ffff:127.0.0.1]", True), ("10.0.0.1", False), ("localhost.example", False)],
)  # fmt: skip
def test_this_machine_is_known_by_its_names_and_addresses(host: str, expected: bool) -> None:
    assert is_this_machine(urllib.parse.urlunsplit(("http", f"{host}:8000", "/v1", "", ""))) is expected
