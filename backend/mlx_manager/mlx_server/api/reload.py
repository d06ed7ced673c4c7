"""Settings that are read again while the server runs, at SIGHUP or `POST /admin/reload`.

The settings are built by the same rules as at the start. `LIVE` has those that take effect at once; all others wait for
a restart, and are named until it has come. Requests under way are not disturbed.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastapi import FastAPI

from mlx_manager.mlx_server.api.dependencies import ServerState, require
from mlx_manager.mlx_server.api.edge.exposure import why_too_open
from mlx_manager.mlx_server.api.edge.rules import EdgeRules, edge_rules
from mlx_manager.mlx_server.config import MLXServerSettings, UnreadableSettings, faults_of
from mlx_manager.mlx_server.errors import BadSettings, NotReady
from mlx_manager.mlx_server.models.catalog import Catalog, catalog_of, why_default_is_missing
from mlx_manager.mlx_server.models.changes import CatalogChanges, changes
from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.observability import set_log_level
from mlx_manager.mlx_server.services.hygiene import hygiene_of
from mlx_manager.mlx_server.services.prompts import prompt_rules

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """The settings from now on, and what is made of them by reading files, which may fail."""

    settings: MLXServerSettings
    catalog: Catalog
    edge: EdgeRules


Tell = Callable[[FastAPI, Reading], None]


def _read_when_used(app: FastAPI, reading: Reading) -> None:
    """For a setting that is read from `app.state.settings` or `ServerState.settings` each time that it counts."""


def _tell_pool(app: FastAPI, reading: Reading) -> None:
    _server(app).pool.use_catalog(reading.catalog, reading.settings.keep_alive)


def _tell_budget(app: FastAPI, reading: Reading) -> None:
    pool = _server(app).pool
    pool.budget = replace(pool.budget, max_models=reading.settings.max_models)


def _tell_admission(app: FastAPI, reading: Reading) -> None:
    _server(app).pool.admission.max_queue = reading.settings.max_queue


def _tell_inference(app: FastAPI, reading: Reading) -> None:
    inference, settings = _server(app).inference, reading.settings
    inference.timeout_seconds = _server(app).pool.line.request_timeout_seconds = settings.request_timeout_seconds
    inference.trace_content = settings.trace_content
    inference.hygiene = hygiene_of(settings)


def _tell_backends(app: FastAPI, reading: Reading) -> None:
    backends, settings = _server(app).inference.backends, reading.settings
    backends.fallbacks, backends.aliases = settings.fallbacks, settings.aliases
    backends.rules = prompt_rules(settings)


def _tell_upstreams(app: FastAPI, reading: Reading) -> None:
    _server(app).upstreams.update(reading.settings.upstreams, reading.settings.upstream_poll_seconds)


def _tell_edge(app: FastAPI, reading: Reading) -> None:
    app.state.edge = reading.edge


def _tell_log(app: FastAPI, reading: Reading) -> None:
    set_log_level(reading.settings.log_level)


LIVE: Mapping[str, Tell] = {
    "models": _tell_pool,
    "available_models": _tell_pool,
    "models_dir": _tell_pool,
    "hub_cache": _tell_pool,
    "allow_downloads": _tell_pool,
    "default_for_unknown": _tell_pool,
    "keep_alive": _tell_pool,
    "max_models": _tell_budget,
    "max_queue": _tell_admission,
    "request_timeout_seconds": _tell_inference,
    "max_prompt_characters": _tell_backends,
    "tool_prompt": _tell_backends,
    "hoist_system_messages": _tell_backends,
    "trace_content": _tell_inference,
    "strip_billing_line": _tell_inference,
    "strip_token_counter": _tell_inference,
    "max_messages": _read_when_used,
    "max_tools": _read_when_used,
    "fallbacks": _tell_backends,
    "aliases": _tell_backends,
    "upstreams": _tell_upstreams,
    "upstream_poll_seconds": _tell_upstreams,
    "log_level": _tell_log,
    "api_keys": _tell_edge,
    "api_keys_file": _tell_edge,
    "admin_key": _tell_edge,
    "insecure_no_auth": _tell_edge,
    "allowed_hosts": _tell_edge,
    "cors_origins": _tell_edge,
    "rate_limit_requests_per_minute": _tell_edge,
    "rate_limit_tokens_per_minute": _tell_edge,
    "default_max_tokens": _read_when_used,
    "reject_unknown_fields": _read_when_used,
    "drain_timeout_seconds": _read_when_used,
}
"""By the setting's name, who hands the new value to what keeps a copy of it, without fail and without waiting."""

TOLD_ALWAYS: tuple[Tell, ...] = (_tell_pool, _tell_edge)
"""For those who look at files that the settings name: the files may have changed where the settings have not."""


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
        _tell_the_log(report)
        return report

    def _apply(self, running: MLXServerSettings, wanted: MLXServerSettings, reading: Reading) -> Reloaded:
        """All at once: there is no await between the first that is told and the last."""
        changed = _differing(running, reading.settings)
        report = Reloaded(
            changed,
            [name for name in _differing(running, wanted) if name not in LIVE],
            _changes_of_models(_server(self._app).pool, running, reading),
        )
        self._app.state.settings = reading.settings
        self._app.state.server = replace(_server(self._app), settings=reading.settings)
        for tell in dict.fromkeys([*(LIVE[name] for name in changed), *TOLD_ALWAYS]):
            tell(self._app, reading)
        return report


async def reload_quietly(reloader: Reloader) -> None:
    """For a signal, which has nobody to answer: the log has the faults."""
    with contextlib.suppress(BadSettings, NotReady):
        await reloader.reload()


def _server(app: FastAPI) -> ServerState:
    """Raises NotReady for a server that has ended meanwhile."""
    return require(app.state.server)


def _read(running: MLXServerSettings, addresses: Sequence[str]) -> tuple[MLXServerSettings, Reading]:
    """What is wanted, and as much of it as can be had without a restart. Reads files: for a thread.

    `addresses` are where the server listens.
    """
    wanted = running.read_again()
    settings = running.model_copy(update={name: getattr(wanted, name) for name in LIVE})
    catalog, edge = catalog_of(settings), _edge_rules(settings)
    fault = why_default_is_missing(catalog) or why_too_open(settings, addresses)
    if fault is not None:
        raise _refusal([fault])
    return wanted, Reading(settings, catalog, edge)


def _edge_rules(settings: MLXServerSettings) -> EdgeRules:
    try:
        return edge_rules(settings)
    except ValueError as exc:  # the file with the keys is another one by now
        raise _refusal([str(exc)]) from exc


def _differing(one: MLXServerSettings, other: MLXServerSettings) -> list[str]:
    return [name for name in MLXServerSettings.model_fields if getattr(one, name) != getattr(other, name)]


def _changes_of_models(pool: ModelPoolManager, running: MLXServerSettings, reading: Reading) -> CatalogChanges:
    return changes(pool.catalog, reading.catalog, running.models, reading.settings.models, _held(pool))


def _held(pool: ModelPoolManager) -> list[str]:
    """Ids of the models that are loaded, or being loaded."""
    loading = [entry.id for entry in pool.catalog if pool.state(entry.id).progress is not None]
    return [*pool.get_loaded_models(), *loading]


def _refusal(faults: list[str]) -> BadSettings:
    for fault in faults:
        logger.error("Settings not reloaded: %s", fault)
    named = "; ".join(faults)
    return BadSettings(f"The settings were not reloaded, and nothing has changed: mend them and try again. {named}.")


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
