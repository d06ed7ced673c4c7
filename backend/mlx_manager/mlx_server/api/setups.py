"""GET /ui/setups: how to set each client up for a model of this server. What `mlx-manager launch --print` prints."""

import json
import shlex
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request

from mlx_manager.command_line.clients import CLIENTS, NO_KEY, Client, JsonFile, Setup, Target
from mlx_manager.mlx_server.api.dependencies import State
from mlx_manager.mlx_server.api.v1.models import retrieve_model
from mlx_manager.mlx_server.protocols.codex import codex_model
from mlx_manager.mlx_server.schemas.live import ClientSetup, SetupStep
from mlx_manager.mlx_server.schemas.models import ModelInfo

router = APIRouter(include_in_schema=False)

SHOWN_KEY = "YOUR-KEY"
_HOME = "~"
"""The home folder of the reader, which the server does not know."""
Root = Annotated[str, Query(pattern=r"^https?://[^\s\"'\\]+$", max_length=300)]


@router.get("/ui/setups")
async def client_setups(request: Request, state: State, model: str, root: Root) -> list[ClientSetup]:
    """`root` is the address of this server as the reader's browser knows it."""
    found = await retrieve_model(model, state)
    key = SHOWN_KEY if request.app.state.guard.keys else NO_KEY
    target = _target(found, root.rstrip("/"), key)
    return [_described(client, client.set_up(target, {"HOME": _HOME})) for client in CLIENTS.values()]


def _target(model: ModelInfo, root: str, key: str) -> Target:
    can = model.capabilities
    catalog = json.dumps([codex_model(model, 0).model_dump()])
    return Target(root, key, model.id, model.context_length, can is not None and can.reasoning, catalog)


def _described(client: Client, setup: Setup) -> ClientSetup:
    steps = [*_files(setup), *_command(client, setup)]
    return ClientSetup(name=client.name, install=client.install, steps=steps)


def _files(setup: Setup) -> Iterator[SetupStep]:
    for file in setup.files:
        if not isinstance(file, JsonFile):
            yield SetupStep(title=f"Add to {file.path}", text=f"- {json.dumps(file.item)}")
        else:
            doing = "Write" if file.ours else "Merge into"
            yield SetupStep(title=f"{doing} {file.path}", text=json.dumps(file.content, indent=2))


def _command(client: Client, setup: Setup) -> Iterator[SetupStep]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in setup.environment.items()]
    if client.program is not None:
        lines.append(_with_home(shlex.join([client.program, *setup.arguments])))
    if lines:
        yield SetupStep(title="Run", text="\n".join(lines))
    if setup.steps:
        yield SetupStep(title="Then", text="\n".join(setup.steps))


def _with_home(command: str) -> str:
    """The quoted words with `~/` as "$HOME"/, which the shell expands. Quoted, because `~` needs quoting."""
    return command.replace("'~/", '"$HOME"\'/').replace('="~/', '="\'"$HOME"\'/')
