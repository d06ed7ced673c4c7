"""Settings that are read again while the server runs, at SIGHUP or `POST /admin/reload`.

Those of `LIVE` take effect at once: models of this machine and of upstreams, who may use them, and the log's level. All
others wait for a restart, and are named until it has come. Requests under way are not disturbed.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastapi import FastAPI

from mlx_manager.mlx_server.api.dependencies import require
from mlx_manager.mlx_server.api.guard import GuardRules, guard_rules
from mlx_manager.mlx_server.config import MLXServerSettings, ModelsSettings, UnreadableSettings, faults_of
from mlx_manager.mlx_server.errors import BadSettings, NotReady
from mlx_manager.mlx_server.models.catalog import Catalog, catalog_of, why_default_is_missing
from mlx_manager.mlx_server.models.changes import CatalogChanges, changes
from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.observability import set_log_level
from mlx_manager.mlx_server.security_settings import SecuritySettings
from mlx_manager.mlx_server.upstream_settings import UpstreamsSettings
from mlx_manager.mlx_server.utils.listening import why_too_open

logger = logging.getLogger(__name__)

LIVE = frozenset(
    {*ModelsSettings.model_fields, *SecuritySettings.model_fields, *UpstreamsSettings.model_fields, "log_level"}
    - {"default_model", "preload"}  # they say what is loaded at the start
)


@dataclass(frozen=True, slots=True)
class Reading:
    """The settings from now on, and what is made of them by reading files, which may fail."""

    settings: MLXServerSettings
    catalog: Catalog
    guard: GuardRules


@dataclass(frozen=True, slots=True)
class Reloaded:
    """`changed` took effect; `needs_restart` did not, and does at the next start."""

    changed: list[str]
    needs_restart: list[str]
    models: CatalogChanges


class Reloader:
    """One reload after another, for the app whose lifespan runs. Used on its event loop."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._turn = asyncio.Lock()

    async def reload(self) -> Reloaded:
        """Raises BadSettings, with every fault, when the settings cannot be used; then nothing has changed."""
        async with self._turn:
            running: MLXServerSettings = self._app.state.settings
            try:
                wanted, reading = await asyncio.to_thread(_read, running, self._app.state.addresses)
            except UnreadableSettings as exc:
                raise _refusal(faults_of(exc)) from exc
            report = self._apply(running, wanted, reading)
        _log(report)
        return report

    def _apply(self, running: MLXServerSettings, wanted: MLXServerSettings, reading: Reading) -> Reloaded:
        """All at once, without an await in between. What did not change is set again: its files may have changed."""
        server, settings = require(self._app.state.server), reading.settings
        report = Reloaded(
            _differing(running, settings),
            [name for name in _differing(running, wanted) if name not in LIVE],
            changes(server.pool.catalog, reading.catalog, running.models, settings.models, _held(server.pool)),
        )
        self._app.state.settings = settings
        self._app.state.server = replace(server, settings=settings)
        self._app.state.guard = reading.guard
        server.pool.use_catalog(reading.catalog, settings.keep_alive)
        server.upstreams.update(settings.upstreams, self._app.state.bounds.upstream_poll_seconds)
        backends = server.inference.backends
        backends.fallbacks, backends.aliases = settings.fallbacks, settings.aliases
        set_log_level(settings.log_level)
        return report


async def reload_quietly(reloader: Reloader) -> None:
    """For a signal, to which nothing can be answered: the log has the faults."""
    with contextlib.suppress(BadSettings, NotReady):
        await reloader.reload()


def _read(running: MLXServerSettings, addresses: Sequence[str]) -> tuple[MLXServerSettings, Reading]:
    """What is wanted, and as much of it as can be had without a restart. Reads files: for a thread.

    `addresses` are where the server listens.
    """
    wanted = running.read_again()
    settings = running.model_copy(update={name: getattr(wanted, name) for name in LIVE})
    try:
        reading = Reading(settings, catalog_of(settings), guard_rules(settings))
    except ValueError as exc:  # the file with the keys is another one by now
        raise _refusal([str(exc)]) from exc
    fault = why_default_is_missing(reading.catalog) or why_too_open(settings, addresses)
    if fault is not None:
        raise _refusal([fault])
    return wanted, reading


def _differing(one: MLXServerSettings, other: MLXServerSettings) -> list[str]:
    return [name for name in MLXServerSettings.model_fields if getattr(one, name) != getattr(other, name)]


def _held(pool: ModelPoolManager) -> list[str]:
    """Ids of the models that are loaded, or being loaded."""
    loading = [entry.id for entry in pool.catalog if pool.state(entry.id).progress is not None]
    return [*pool.get_loaded_models(), *loading]


def _refusal(faults: list[str]) -> BadSettings:
    for fault in faults:
        logger.error("Settings not reloaded: %s", fault)
    named = "; ".join(faults)
    return BadSettings(f"The settings were not reloaded, and nothing has changed: correct them and try again. {named}.")


def _log(report: Reloaded) -> None:
    models = report.models
    logger.info(
        "Settings reloaded: changed: %s; models added: %s, removed: %s, changed: %s",
        *(", ".join(names) or "none" for names in (report.changed, models.added, models.removed, models.changed)),
    )
    if report.needs_restart:
        logger.warning("Settings that need a restart to take effect: %s", ", ".join(report.needs_restart))
    if models.to_load_again:
        logger.warning("Models that serve as they are until they are loaded again: %s", ", ".join(models.to_load_again))
