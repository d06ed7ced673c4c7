"""Reloads the settings while the server runs, at SIGHUP or `POST /admin/reload`. Does not interrupt requests.

The settings in `LIVE` take effect at once: models, upstreams, access and the log level. All others need a restart, and
each reload names them until then.
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
    - {"default_model", "preload"}  # they apply at the start only
)


@dataclass(frozen=True, slots=True)
class Reading:
    """The new settings, and what was read from the files that they name, which may fail."""

    settings: MLXServerSettings
    catalog: Catalog
    guard: GuardRules


@dataclass(frozen=True, slots=True)
class Reloaded:
    """`changed` took effect; `needs_restart` takes effect at the next start."""

    changed: list[str]
    needs_restart: list[str]
    models: CatalogChanges


class Reloader:
    """Runs one reload at a time for a running app. Used on its event loop."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._lock = asyncio.Lock()

    async def reload(self) -> Reloaded:
        """Raises BadSettings with all faults, and changes nothing, if the settings are invalid."""
        async with self._lock:
            running: MLXServerSettings = self._app.state.settings
            try:
                wanted, reading = await asyncio.to_thread(_read, running, self._app.state.addresses)
            except UnreadableSettings as exc:
                raise _bad_settings(faults_of(exc)) from exc
            report = self._apply(running, wanted, reading)
        _log(report)
        return report

    def _apply(self, running: MLXServerSettings, wanted: MLXServerSettings, reading: Reading) -> Reloaded:
        """Applies everything without an await. Unchanged settings are applied too: their files may have changed."""
        server, settings = require(self._app.state.server), reading.settings
        report = Reloaded(
            _differing(running, settings),
            [name for name in _differing(running, wanted) if name not in LIVE],
            changes(server.pool.catalog, reading.catalog, running.models, settings.models, _loaded_ids(server.pool)),
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


async def reload_on_signal(reloader: Reloader) -> None:
    """The reload of SIGHUP: faults go to the log only."""
    with contextlib.suppress(BadSettings, NotReady):
        await reloader.reload()


def _read(running: MLXServerSettings, addresses: Sequence[str]) -> tuple[MLXServerSettings, Reading]:
    """The settings as they are written, and the part of them that takes effect without a restart.

    `addresses` are where the server listens. Reads files, so it runs in a thread.
    """
    wanted = running.read_again()
    settings = running.model_copy(update={name: getattr(wanted, name) for name in LIVE})
    try:
        reading = Reading(settings, catalog_of(settings), guard_rules(settings))
    except ValueError as exc:  # the key file has changed since
        raise _bad_settings([str(exc)]) from exc
    fault = why_default_is_missing(reading.catalog) or why_too_open(settings, addresses)
    if fault is not None:
        raise _bad_settings([fault])
    return wanted, reading


def _differing(one: MLXServerSettings, other: MLXServerSettings) -> list[str]:
    return [name for name in MLXServerSettings.model_fields if getattr(one, name) != getattr(other, name)]


def _loaded_ids(pool: ModelPoolManager) -> list[str]:
    """Ids of the models that are loaded, or being loaded."""
    loading = [entry.id for entry in pool.catalog if pool.state(entry.id).progress is not None]
    return [*pool.get_loaded_models(), *loading]


def _bad_settings(faults: list[str]) -> BadSettings:
    for fault in faults:
        logger.error("Settings not reloaded: %s", fault)
    named = " ".join(fault if fault.endswith((".", "?")) else f"{fault}." for fault in faults)
    return BadSettings(
        f"The settings were not reloaded: {named} Nothing has changed. Correct the faults, and reload again."
    )


def _log(report: Reloaded) -> None:
    models = report.models
    logger.info(
        "Settings reloaded: changed: %s; models added: %s, removed: %s, changed: %s",
        *(", ".join(names) or "none" for names in (report.changed, models.added, models.removed, models.changed)),
    )
    if report.needs_restart:
        logger.warning("Settings that need a restart to take effect: %s", ", ".join(report.needs_restart))
    if models.to_load_again:
        logger.warning(
            "Models that keep their old settings until they are loaded again: %s. Unload them to apply the change",
            ", ".join(models.to_load_again),
        )
