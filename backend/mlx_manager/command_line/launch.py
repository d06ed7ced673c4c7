"""`launch`: starts a coding agent or tool on a model of the server, and a server if none runs.

Settings go into the client's environment and arguments if it reads them there, so they hold for this run only;
otherwise they are merged into its configuration file.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mlx_manager.command_line.clients import CLIENTS, NO_KEY, Client, JsonFile, Setup, Target
from mlx_manager.command_line.config_files import change_of
from mlx_manager.command_line.connection import Server, ServerUnreachable, find_server
from mlx_manager.command_line.console import USAGE, CommandFailed, note, print_table
from mlx_manager.command_line.own_server import server_for, signals_end_the_block

COLUMNS = ("CLIENT", "INSTALLED", "PROGRAM", "TO INSTALL")
_SHOWN_KEY = "YOUR-KEY"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the server knows of the model. `context_tokens` and `tools` are None where it knows nothing."""

    context_tokens: int | None
    tools: str | bool | None
    reasoning: bool
    catalog: str


_NOTHING_KNOWN = Facts(None, None, False, "[]")


def list_clients() -> None:
    rows = []
    for client in CLIENTS.values():
        found = None if client.program is None else shutil.which(client.program)
        installed = "-" if client.program is None else "yes" if found is not None else "no"
        rows.append((client.name, installed, found or client.program or "--print alone", client.install))
    print_table(COLUMNS, rows)


def launch(
    name: str, model: str | None, base_url: str | None, api_key: str | None, arguments: Sequence[str], only_print: bool
) -> None:
    client = _client(name)
    if only_print:
        _print(client, model, base_url, api_key, arguments)
        return
    program = _program(client)
    key = api_key if api_key is not None or base_url is not None else _user_key()
    with server_for(model, base_url, api_key, purpose=client.name, lasting_address=True) as server:
        target, facts = _target(server, model, key)
        for warning in warnings(client, target.model, facts):
            note(f"Warning: {warning}")
        setup = client.set_up(target, os.environ)
        _write(setup)
        note(f"Starting {client.name} on {target.model} at {server.root}.")
        exit_code = _run([program, *setup.arguments, *arguments], setup.environment)
    if exit_code != 0:
        raise SystemExit(exit_code)


def warnings(client: Client, model: str, facts: Facts) -> Iterator[str]:
    """Warnings about a model that does not fit the client, with remedies."""
    context, first = facts.context_tokens, client.first_request_tokens
    if context is not None and context < first:
        yield (
            f"{model} has a context of {context:,} tokens, and {client.name} sends about {first:,} with its first "
            "message: the server refuses a prompt that does not fit. Choose another model with --model (`mlx-manager "
            "models` lists them with their context), or raise its context_length in mlx-manager.toml if its files "
            "allow more."
        )
    if client.needs_tools and facts.tools is False:
        yield f"{model} cannot call tools, and {client.name} works by tools alone. Choose another model with --model."
    if client.needs_tools and facts.tools == "prompted":
        yield (
            f"The chat template of {model} does not show tools. The server describes them in a prompt, which small "
            f"models often do not follow. `mlx-manager bench --tools --model {model}` measures it."
        )


def _client(name: str) -> Client:
    try:
        return CLIENTS[name]
    except KeyError as exc:
        raise CommandFailed(f"Unknown client {name!r}. Give one of: {', '.join(CLIENTS)}.", USAGE) from exc


def _program(client: Client) -> str:
    if client.program is None:
        raise CommandFailed(
            f"launch cannot start {client.name}. Run `mlx-manager launch {client.name} --print` for its settings.",
            USAGE,
        )
    program = shutil.which(client.program)
    if program is None:
        raise CommandFailed(f"{client.name} is not installed: {client.program} is not on PATH. Run `{client.install}`.")
    return program


def _user_key() -> str | None:
    """A user's key of the settings before the admin's: an agent runs commands, and need not unload models."""
    from mlx_manager.mlx_server.config import mlx_server_settings

    return next((key.key.get_secret_value() for key in mlx_server_settings.all_api_keys()), None)


def _target(server: Server, model: str | None, key: str | None = None) -> tuple[Target, Facts]:
    """The client gets `key`, else the server's own. Raises CommandFailed where the server does not have the model."""
    model = model if model is not None else server.a_model()
    found = server.get(f"/v1/models/{quote(model, safe='/')}")
    facts = _facts(found, server.get("/v1/models"))
    return _target_of(server.root, key if key is not None else server.api_key, found["id"], facts), facts


def _target_of(root: str, key: str | None, model: str, facts: Facts) -> Target:
    return Target(root, key if key is not None else NO_KEY, model, facts.context_tokens, facts.reasoning, facts.catalog)


def _facts(found: Mapping[str, Any], listing: Mapping[str, Any]) -> Facts:
    """`found` is the model, and `listing` the whole answer of /v1/models. Another make of server may know less."""
    can = found.get("capabilities") or {}
    for_codex = [model for model in listing.get("models") or [] if model.get("slug") == found.get("id")]
    return Facts(found.get("context_length"), can.get("tools"), bool(can.get("reasoning")), json.dumps(for_codex))


def _print(
    client: Client, model: str | None, base_url: str | None, api_key: str | None, arguments: Sequence[str]
) -> None:
    """What launch would do, with a stand-in for the key; nothing is started or written."""
    server = find_server(base_url, api_key)
    try:
        target, facts = _target(server, model)
    except ServerUnreachable:
        if base_url is not None:
            raise
        target, facts = _without_server(server, model)
    if server.api_key is not None:
        target = _target_of(server.root, _SHOWN_KEY, target.model, facts)
    for warning in warnings(client, target.model, facts):
        note(f"Warning: {warning}")
    _print_setup(client, client.set_up(target, os.environ), arguments)


def _without_server(server: Server, model: str | None) -> tuple[Target, Facts]:
    """By the settings of this machine, and by the files of the model."""
    from mlx_manager.command_line.models import of_settings
    from mlx_manager.mlx_server.config import mlx_server_settings

    listed = of_settings()
    if model is None:
        model = mlx_server_settings.default_model or listed[0].id
    known = next((one for one in listed if one.id == model), None)
    note(f"No server answers at {server.root}: launch would start one.")
    facts = _NOTHING_KNOWN if known is None else Facts(known.context_length, known.tools, False, "[]")
    return _target_of(server.root, server.api_key, model, facts), facts


def _print_setup(client: Client, setup: Setup, arguments: Sequence[str]) -> None:
    for file in setup.files:
        try:
            diff = change_of(file).diff
        except CommandFailed as exc:
            note(f"Warning: {exc}")
            continue
        print(diff or f"# {file.path} needs no change")
    for name, value in setup.environment.items():
        print(f"export {name}={shlex.quote(value)}")
    if client.program is not None:
        print(shlex.join([client.program, *setup.arguments, *arguments]))
    for step in setup.steps:
        print(step)


def _write(setup: Setup) -> None:
    """Writes what has changed, and shows the change of the files that are not launch's own."""
    for file in setup.files:
        change = change_of(file)
        if not change.diff:
            continue
        backup = change.write()
        if isinstance(file, JsonFile) and file.ours:
            note(f"Wrote {file.path}.")
        else:
            note(f"{change.diff}\nChanged {file.path}" + (f"; the old one is {backup}." if backup is not None else "."))


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """The client's exit status. Ctrl-C is the client's: it reaches it from the terminal."""
    sys.stdout.flush()
    with signals_end_the_block():
        try:
            process = subprocess.Popen(command, env={**os.environ, **environment})
        except OSError as exc:
            raise CommandFailed(f"Cannot start {command[0]}: {exc.strerror}. Install the client again.") from exc
        try:
            return _wait(process)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _wait(process: "subprocess.Popen[bytes]") -> int:
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:
            continue
