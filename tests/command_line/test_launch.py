"""`launch`: what each client is given, what is written into its files, and what is said before it starts.

The clients are stand-ins on PATH, which record how they were started; tests/agents has the real ones.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_manager.command_line.clients import CLIENTS
from tests.command_line.commands import mlx_manager
from tests.running_server import RunningServer, running_server

DEMO = Path(__file__).parents[2] / "backend" / "mlx_manager" / "demo"
STARTED = [client for client in CLIENTS.values() if client.program is not None]
PRINTED = [client for client in CLIENTS.values() if client.program is None]
STAND_IN = f"""#!{sys.executable}
import json, os, sys, urllib.request
if "ASK" in os.environ:
    urllib.request.urlopen(os.environ["ASK"])
record = {{"arguments": sys.argv[1:], "environment": dict(os.environ)}}
open(os.environ["RECORD"], "w").write(json.dumps(record))
sys.exit(int(os.environ.get("EXIT_CODE", "0")))
"""


@dataclass(frozen=True)
class Person:
    """With a home of its own, and the clients' stand-ins on PATH."""

    home: Path
    programs: Path

    def install(self, program: str) -> None:
        file = self.programs / program
        file.write_text(STAND_IN)
        file.chmod(0o755)

    def launch(self, *arguments: str, server: RunningServer | None = None, **variables: Any) -> Any:
        path = os.pathsep.join([str(self.programs), "/usr/bin", "/bin"])
        return mlx_manager(
            "launch",
            *arguments,
            server=server,
            HOME=self.home,
            PATH=path,
            RECORD=self.home / "record.json",
            XDG_CONFIG_HOME="",
            CODEX_HOME="",
            LLM_USER_PATH="",
            **variables,
        )

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.home / "record.json").read_text())
        return record

    def files(self) -> list[str]:
        return sorted(str(file.relative_to(self.home)) for file in self.home.rglob("*") if file.is_file())


@pytest.fixture
def person(tmp_path: Path) -> Person:
    for name in ("home", "programs"):
        (tmp_path / name).mkdir()
    return Person(tmp_path / "home", tmp_path / "programs")


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """With `coder`, whose context is large enough for every client."""
    folder = tmp_path_factory.mktemp("roomy")
    config = folder / "mlx-manager.toml"
    config.write_text(f'[[models]]\nid = "coder"\npath = "{DEMO}"\ncontext_length = 65536\n')
    with running_server(folder, config=config) as server:
        yield server


def test_claude_code_gets_the_server_the_limits_and_the_switches_by_its_environment(
    person: Person, roomy: RunningServer
) -> None:
    person.install("claude")
    ran = person.launch("claude", "--model", "coder", "--", "-p", "Hello", server=roomy)
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    record = person.record()
    assert record["arguments"] == ["-p", "Hello"]
    expected = {
        "ANTHROPIC_BASE_URL": roomy.url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": "coder",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "coder",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "65536",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "16384",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
    }
    assert record["environment"].items() >= expected.items()
    assert person.files() == ["record.json"]


def test_codex_gets_a_catalogue_of_the_model_and_a_provider_for_this_run_alone(
    person: Person, roomy: RunningServer
) -> None:
    person.install("codex")
    config = person.home / ".codex" / "config.toml"
    config.parent.mkdir()
    config.write_text('model = "mine"\n')
    ran = person.launch("codex", "--model", "coder", "--", "exec", "Hello", server=roomy)
    assert ran.returncode == 0, ran.stderr
    arguments = person.record()["arguments"]
    assert arguments[-2:] == ["exec", "Hello"]
    settings = dict(pair.split("=", 1) for pair in arguments[1:-2:2])
    catalog = person.home / ".codex" / "mlx-manager.json"
    assert json.loads(settings["model_catalog_json"]) == str(catalog)
    assert json.loads(settings["model_providers.mlx-manager.base_url"]) == f"{roomy.url}/v1"
    assert (settings["model"], settings["model_context_window"]) == ('"coder"', "65536")
    (model,) = json.loads(catalog.read_text())["models"]
    assert (model["slug"], model["context_window"]) == ("coder", 65536)
    assert config.read_text() == 'model = "mine"\n'


def test_a_configuration_is_merged_shown_and_kept_in_a_backup(person: Person, roomy: RunningServer) -> None:
    person.install("opencode")
    file = person.home / ".config" / "opencode" / "opencode.json"
    file.parent.mkdir(parents=True)
    before = '{"theme": "mine", "provider": {"other": {"name": "other"}}}'
    file.write_text(before)
    ran = person.launch("opencode", "--model", "coder", server=roomy)
    assert ran.returncode == 0, ran.stderr
    merged = json.loads(file.read_text())
    assert (merged["theme"], merged["provider"]["other"]) == ("mine", {"name": "other"})
    model = merged["provider"]["mlx-manager"]["models"]["coder"]
    assert model["limit"] == {"context": 65536, "output": 16384}
    assert '+          "limit": {' in ran.stderr
    (backup,) = file.parent.glob("*.bak")
    assert backup.read_text() == before
    assert str(backup) in ran.stderr

    person.launch("opencode", "--model", "coder", server=roomy)
    assert list(file.parent.glob("*.bak")) == [backup]  # nothing has changed since
    assert json.loads(person.record()["environment"]["OPENCODE_CONFIG_CONTENT"])["model"] == "mlx-manager/coder"


def test_a_second_model_stands_beside_the_first_and_a_new_launch_replaces_its_own(
    person: Person, roomy: RunningServer
) -> None:
    for program in ("qwen", "llm"):
        person.install(program)
    yaml = person.home / "llm" / "extra-openai-models.yaml"
    yaml.parent.mkdir()
    yaml.write_text("# mine\n- model_id: other\n  model_name: other\n")
    for model in ("coder", "demo", "coder"):
        assert person.launch("qwen", "--model", model, server=roomy).returncode == 0
    settings = json.loads((person.home / ".qwen" / "settings.json").read_text())
    assert [model["id"] for model in settings["modelProviders"]["openai"]] == ["demo", "coder"]
    path = os.pathsep.join([str(person.programs), "/usr/bin", "/bin"])
    for model in ("coder", "demo", "coder"):
        variables: dict[str, Any] = {
            "HOME": person.home,
            "PATH": path,
            "RECORD": person.home / "r",
            "LLM_USER_PATH": yaml.parent,
        }
        ran = mlx_manager("launch", "llm", "--model", model, server=roomy, **variables)
        assert ran.returncode == 0, ran.stderr
    lines = yaml.read_text().splitlines()
    assert lines[:3] == ["# mine", "- model_id: other", "  model_name: other"]
    assert [line.split('"')[3] for line in lines[3:]] == ["mlx-manager/demo", "mlx-manager/coder"]


@pytest.mark.parametrize("content", ['{\n  // mine\n  "theme": "dark"\n}', "[1]"])
def test_a_configuration_that_cannot_be_merged_is_left_as_it_is(
    person: Person, roomy: RunningServer, content: str
) -> None:
    person.install("opencode")
    file = person.home / ".config" / "opencode" / "opencode.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    ran = person.launch("opencode", "--model", "coder", server=roomy)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(f"Error: {file} ")
    assert file.read_text() == content
    assert not (person.home / "record.json").exists()


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_print_shows_settings_and_writes_and_starts_nothing(person: Person, roomy: RunningServer, client: Any) -> None:
    ran = person.launch(client.name, "--model", "coder", "--print", "--", "more", server=roomy)
    assert ran.returncode == 0, ran.stderr
    assert roomy.url in ran.stdout
    last = ran.stdout.splitlines()[-1].split()
    assert client.program is None or (last[0], last[-1]) == (client.program, "more")
    assert person.files() == []


def test_print_does_not_show_a_key_and_the_client_gets_it(person: Person, tmp_path: Path) -> None:
    person.install("claude")
    with running_server(tmp_path, api_keys="a-user", admin_key="the-admin") as server:
        keys = {"MLX_SERVER_API_KEYS": "a-user", "MLX_SERVER_ADMIN_KEY": "the-admin"}
        printed = person.launch("claude", "--print", server=server, **keys)
        assert "ANTHROPIC_AUTH_TOKEN=YOUR-KEY" in printed.stdout
        assert "a-user" not in printed.stdout
        assert "the-admin" not in printed.stdout
        assert person.launch("claude", server=server, **keys).returncode == 0
        assert person.record()["environment"]["ANTHROPIC_AUTH_TOKEN"] == "a-user"


def test_a_file_that_holds_a_key_is_for_its_owner_alone(person: Person, roomy: RunningServer) -> None:
    person.install("cn")
    assert person.launch("continue", "--model", "coder", server=roomy).returncode == 0
    file = person.home / ".continue" / "mlx-manager.yaml"
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["models"][0]["defaultCompletionOptions"]["contextLength"] == 65536
    assert person.record()["arguments"] == ["--config", str(file)]


def test_aider_gets_the_limits_in_a_file_of_metadata(person: Person, roomy: RunningServer) -> None:
    person.install("aider")
    assert person.launch("aider", "--model", "coder", server=roomy).returncode == 0
    metadata = json.loads((person.home / ".aider.mlx-manager.metadata.json").read_text())
    assert metadata["openai/coder"]["max_input_tokens"] == 65536
    assert person.record()["environment"]["OPENAI_API_BASE"] == f"{roomy.url}/v1"


def test_a_context_that_is_too_small_is_said_before_the_client_starts(person: Person, server: RunningServer) -> None:
    person.install("claude")
    ran = person.launch("claude", "--model", "demo", server=server)
    assert ran.returncode == 0
    warning, started = ran.stderr.splitlines()
    assert warning.startswith("Warning: demo has a context of 8,192 tokens, and claude sends about 16,700")
    assert "--model" in warning
    assert started.startswith("Starting claude on demo")


def test_a_model_without_tools_is_said_before_the_client_starts(person: Person, server: RunningServer) -> None:
    person.install("codex")
    ran = person.launch("codex", "--model", "short", server=server)
    assert "Warning: short cannot call tools" in ran.stderr


def test_a_client_that_is_not_installed_is_told_with_the_command_that_installs_it(person: Person) -> None:
    ran = person.launch("codex")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "Error: codex is not installed: codex is not on PATH. Run `npm install -g @openai/codex`.\n"


@pytest.mark.parametrize("client", PRINTED, ids=lambda client: client.name)
def test_a_client_that_launch_cannot_start_names_print(person: Person, client: Any) -> None:
    ran = person.launch(client.name)
    assert ran.returncode == 2
    assert f"launch {client.name} --print" in ran.stderr


def test_an_unknown_client_is_told_with_the_known_ones(person: Person) -> None:
    ran = person.launch("emacs")
    assert ran.returncode == 2
    assert all(name in ran.stderr for name in CLIENTS)


def test_the_list_says_which_clients_are_installed(person: Person) -> None:
    person.install("cn")
    header, *rows = person.launch("--list").stdout.splitlines()
    assert header.split() == ["CLIENT", "INSTALLED", "PROGRAM", "TO", "INSTALL"]
    assert {row.split()[0]: row.split()[1] for row in rows} == {
        **{client.name: "no" for client in STARTED},
        **{client.name: "-" for client in PRINTED},
        "continue": "yes",
    }


def test_an_unknown_model_of_a_given_server_is_told(person: Person, roomy: RunningServer) -> None:
    person.install("claude")
    ran = person.launch("claude", "--model", "code", "--base-url", roomy.url)
    assert ran.returncode == 1
    assert "Did you mean: coder" in ran.stderr


def test_without_a_server_launch_starts_one_and_ends_it_with_the_client(person: Person) -> None:
    """On the port of the settings, which the files of clients name. The exit status is passed on."""
    person.install("llm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    health = f"http://127.0.0.1:{port}/health"
    ran = person.launch("llm", "--model", "demo", "--", "Hello", MLX_SERVER_PORT=port, ASK=health, EXIT_CODE=3)
    assert "Starting one for llm" in ran.stderr
    assert ran.returncode == 3, ran.stderr
    assert person.record()["environment"]["LLM_MODEL"] == "mlx-manager/demo"
    with pytest.raises(httpx.ConnectError):
        httpx.get(health)


def test_without_a_server_print_shows_what_is_known_of_the_model(person: Person) -> None:
    ran = person.launch("claude", "--print", "--model", "demo")
    assert ran.returncode == 0
    assert "export CLAUDE_CODE_MAX_CONTEXT_TOKENS=8192" in ran.stdout
    assert "launch would start one" in ran.stderr
