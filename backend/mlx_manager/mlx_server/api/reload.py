"""Settings that are read again while the server runs, at SIGHUP or `POST /admin/reload`.

The settings are built by the same rules as at the start. `LIVE` has those that take effect at once; all others wait for
a restart, and are named until it has come. Requests under way are not disturbed.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fastapi import FastAPI

from mlx_manager.mlx_server.api.dependencies import ServerState
from mlx_manager.mlx_server.config import MLXServerSettings, UnreadableSettings, faults_of
from mlx_manager.mlx_server.errors import BadSettings, ServerError
from mlx_manager.mlx_server.models.catalog import Catalog, catalog_of, why_default_is_missing
from mlx_manager.mlx_server.models.changes import CatalogChanges, changes
from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.observability import set_log_level

logger = logging.getLogger(__name__)

Tell = Callable[[ServerState, MLXServerSettings], None]


def _read_when_used(server: ServerState, settings: MLXServerSettings) -> None:
    """For a setting that is read from `ServerState.settings`, or `app.state.settings`, each time that it counts."""


def _with_the_catalogue(server: ServerState, settings: MLXServerSettings) -> None:
    """For what the pool is told together with its new catalogue."""


def _tell_max_queue(server: ServerState, settings: MLXServerSettings) -> None:
    server.pool.admission.max_queue = settings.max_queue


def _tell_max_models(server: ServerState, settings: MLXServerSettings) -> None:
    server.pool.budget = replace(server.pool.budget, max_models=settings.max_models)


def _tell_request_timeout(server: ServerState, settings: MLXServerSettings) -> None:
    server.inference.timeout_seconds = settings.request_timeout_seconds


def _tell_upstreams(server: ServerState, settings: MLXServerSettings) -> None:
    server.upstreams.update(settings.upstreams, settings.upstream_poll_seconds)


def _tell_fallbacks(server: ServerState, settings: MLXServerSettings) -> None:
    server.inference.routing.fallbacks = settings.fallbacks


def _tell_log_level(server: ServerState, settings: MLXServerSettings) -> None:
    set_log_level(settings.log_level)


LIVE: Mapping[str, Tell] = {
    "models": _with_the_catalogue,
    "available_models": _with_the_catalogue,
    "models_dir": _with_the_catalogue,
    "hub_cache": _with_the_catalogue,
    "allow_downloads": _with_the_catalogue,
    "default_for_unknown": _with_the_catalogue,
    "keep_alive": _with_the_catalogue,
    "admin_key": _read_when_used,
    "default_max_tokens": _read_when_used,
    "reject_unknown_fields": _read_when_used,
    "drain_timeout_seconds": _read_when_used,
    "max_models": _tell_max_models,
    "max_queue": _tell_max_queue,
    "request_timeout_seconds": _tell_request_timeout,
    "upstreams": _tell_upstreams,
    "upstream_poll_seconds": _tell_upstreams,
    "fallbacks": _tell_fallbacks,
    "log_level": _tell_log_level,
}
"""By the setting's name, who hands the new value to what keeps a copy of it. It must not fail, nor wait."""


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
                wanted, catalog = await asyncio.to_thread(_read, running)
            except UnreadableSettings as exc:
                raise _refusal(faults_of(exc)) from exc
            report = self._apply(running, wanted, catalog)
        _tell_the_log(report)
        return report

    def _apply(self, running: MLXServerSettings, wanted: MLXServerSettings, catalog: Catalog) -> Reloaded:
        """All at once: there is no await between the first that is told and the last."""
        server: ServerState = self._app.state.server
        differing = [name for name in MLXServerSettings.model_fields if getattr(running, name) != getattr(wanted, name)]
        changed = [name for name in differing if name in LIVE]
        now = running.model_copy(update={name: getattr(wanted, name) for name in changed})
        report = Reloaded(
            changed,
            [name for name in differing if name not in LIVE],
            changes(server.pool.catalog, catalog, running.models, now.models, _held(server.pool)),
        )
        server.pool.use_catalog(catalog, now.keep_alive)
        self._app.state.settings = now
        self._app.state.server = replace(server, settings=now)
        for tell in dict.fromkeys(LIVE[name] for name in changed):
            tell(self._app.state.server, now)
        return report


async def reload_and_log(reloader: Reloader) -> None:
    """For a signal, which has nobody to answer."""
    try:
        await reloader.reload()
    except ServerError as exc:
        logger.error("%s", exc.message)


def _read(running: MLXServerSettings) -> tuple[MLXServerSettings, Catalog]:
    """Reads files: for a thread. The default model stays the one of the start."""
    wanted = running.read_again()
    catalog = catalog_of(wanted.model_copy(update={"default_model": running.default_model}))
    fault = why_default_is_missing(catalog)
    if fault is not None:
        raise _refusal([fault])
    return wanted, catalog


def _held(pool: ModelPoolManager) -> list[str]:
    """Ids of the models that are loaded, or being loaded."""
    loading = [entry.id for entry in pool.catalog if pool.state(entry.id).progress is not None]
    return [*pool.get_loaded_models(), *loading]


def _refusal(faults: list[str]) -> BadSettings:
    for fault in faults:
        logger.error("Settings not reloaded: %s", fault)
    return BadSettings(f"The settings were not reloaded, and nothing has changed. {'; '.join(faults)}.")


def _tell_the_log(report: Reloaded) -> None:
    models = report.models
    logger.info(
        "Settings reloaded: changed: %s; models added: %s, removed: %s, changed: %s",
        *(", ".join(names) or "none" for names in (report.changed, models.added, models.removed, models.changed)),
    )
    if report.needs_restart:
        logger.warning("Settings that need a restart to take effect: %s", ", ".join(report.needs_restart))
    if models.to_load_again:
        logger.warning("Models that serve as they are until they are loaded again: %s", ", ".join(models.to_load_again))
