"""`rank`: runs one rank of a model that a server on another machine serves, and joins again after each loss."""

import asyncio
import os
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from mlx_manager.command_line.console import CommandFailed, note
from mlx_manager.demo import DEMO_MODEL_ID, demo_model_path
from mlx_manager.mlx_server.config import faults_of
from mlx_manager.mlx_server.engine.group_client import RankClient
from mlx_manager.mlx_server.engine.membership import Membership
from mlx_manager.mlx_server.engine.messages import Launch, Limits
from mlx_manager.mlx_server.engine.watchdog import WatchdogLimits
from mlx_manager.mlx_server.engine.worker_client import LoadRaised, Supervision
from mlx_manager.mlx_server.errors import LoadingCrashed, ServerError
from mlx_manager.mlx_server.models.fitness import explain
from mlx_manager.mlx_server.models.groups import UnusableGroup, membership_of
from mlx_manager.mlx_server.models.hub import cached_folder, is_repo_id
from mlx_manager.mlx_server.observability.logs import configure_logging
from mlx_manager.mlx_server.rank_settings import RankSettings

AGAIN_SECONDS = 1.0
MOST = Limits(2**62, 2**29, 0)
"""Until rank 0 sends the limits. The rank never takes more than its machine has."""


def rank(model: str, hosts: Path, number: int, backend: str | None, parallel: str | None) -> None:
    """Runs until a signal ends it, or until the rank cannot be loaded."""
    folder = _folder_of(model)
    try:
        wanted = RankSettings.model_validate({"hosts": hosts, "backend": backend, "parallel": parallel or "auto"})
        membership = membership_of(wanted, folder, number)
    except ValidationError as exc:
        raise CommandFailed("\n".join(faults_of(exc))) from exc
    except UnusableGroup as exc:
        raise CommandFailed(f"Model {model!r} cannot be loaded: {exc}") from exc
    if number >= len(membership.hosts):
        raise CommandFailed(f"{hosts} has {len(membership.hosts)} hosts, so there is no rank {number}. Correct --rank.")
    configure_logging("INFO", "human")
    try:
        asyncio.run(_run(model, Launch("generate", str(folder), MOST, membership=membership), membership))
    except KeyboardInterrupt:
        note("The rank has left.")


def _folder_of(model: str) -> Path:
    if model == DEMO_MODEL_ID:
        return demo_model_path()
    path = Path(os.path.expanduser(model))
    folder = path.resolve() if path.is_dir() else cached_folder(model) if is_repo_id(model) else None
    if folder is None:
        raise CommandFailed(f"There is no model {model!r} on this machine. Give its folder, or pull it first.")
    return folder


async def _run(model: str, launch: Launch, membership: Membership) -> NoReturn:
    supervision = Supervision(
        watchdog=WatchdogLimits(),
        on_death=_ignore,
        on_progress=_ignore,
        on_device=_ignore,
        on_warm_up=lambda: None,
        is_generating=lambda: False,
    )
    note(f"Waiting for rank 0 at {membership.hosts[0].addresses[0]}.")
    while True:
        client = await RankClient.start(model, launch, supervision)
        try:
            await client.loaded
            await client.wait_until_exited()
        except LoadRaised as exc:
            raise CommandFailed(f"Model {model!r} cannot be loaded: {explain(str(exc))}") from exc
        except LoadingCrashed:
            pass  # rank 0 has not come for a long time, or the system ended the rank
        except ServerError as exc:
            if not client.lost_another:
                raise CommandFailed(exc.message) from exc
        finally:
            await client.end()
        note(f"{client.exit_reason} Waiting for rank 0 to start again.")
        await asyncio.sleep(AGAIN_SECONDS)


def _ignore(event: object) -> None:
    """A rank on its own machine has no server that heeds its worker's events."""
