"""Builds the server's objects in order, and closes them in reverse. The first file to read.

A request: `api/v1/*.py` -> `protocols/` -> `services/inference.py` -> `models/pool.py` and `engine/client.py`
-> the worker process (`engine/worker.py`, `engine/core.py`) -> back as events -> `api/respond.py`.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from mlx_manager.plugins import leave_out_logfire

if __name__ == "__main__":
    leave_out_logfire()

import uvicorn
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.types import ASGIApp

from mlx_manager.mlx_server import __version__, config
from mlx_manager.mlx_server.api.admin import router as admin_router
from mlx_manager.mlx_server.api.connections import GuardedProtocol, protocol_with
from mlx_manager.mlx_server.api.dependencies import ServerState
from mlx_manager.mlx_server.api.errors import install_error_handlers
from mlx_manager.mlx_server.api.exchange import ExchangeMiddleware
from mlx_manager.mlx_server.api.guard import Guard, guard_rules
from mlx_manager.mlx_server.api.health import router as health_router
from mlx_manager.mlx_server.api.live import router as live_router
from mlx_manager.mlx_server.api.metrics import router as metrics_router
from mlx_manager.mlx_server.api.page import router as page_router
from mlx_manager.mlx_server.api.reload import Reloader, reload_on_signal
from mlx_manager.mlx_server.api.setups import router as setups_router
from mlx_manager.mlx_server.api.v1 import v1_router
from mlx_manager.mlx_server.api.v1.embeddings import router as embeddings_router
from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.config import InvalidSettings, MLXServerSettings, warnings_of_environment
from mlx_manager.mlx_server.engine.messages import WorkerOptions
from mlx_manager.mlx_server.engine.watchdog import WatchdogLimits
from mlx_manager.mlx_server.models.budget import Budget
from mlx_manager.mlx_server.models.catalog import Catalog, catalog_of, why_default_is_missing
from mlx_manager.mlx_server.models.mac_watch import MacWatch
from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.models.running import Running, set_running
from mlx_manager.mlx_server.observability import Metrics, RecentRequests, configure_logging, instrument
from mlx_manager.mlx_server.protocols.base import Protocols
from mlx_manager.mlx_server.protocols.chat import ChatCompletions
from mlx_manager.mlx_server.protocols.completions import Completions
from mlx_manager.mlx_server.protocols.embeddings import EmbeddingEndpoints
from mlx_manager.mlx_server.protocols.messages import Messages
from mlx_manager.mlx_server.protocols.responses import Responses
from mlx_manager.mlx_server.services.backends import Backends
from mlx_manager.mlx_server.services.embedding import EmbeddingService
from mlx_manager.mlx_server.services.inference import InferenceService
from mlx_manager.mlx_server.services.prompts import prompt_rules
from mlx_manager.mlx_server.services.response_store import ResponseStore
from mlx_manager.mlx_server.services.upstreams.registry import Upstreams
from mlx_manager.mlx_server.utils import macos
from mlx_manager.mlx_server.utils.descriptors import raise_descriptor_limit
from mlx_manager.mlx_server.utils.folders import cache_folder
from mlx_manager.mlx_server.utils.listening import addresses_of, listen, warn_if_exposed, why_too_open
from mlx_manager.mlx_server.utils.memory import BYTES_PER_GB
from mlx_manager.mlx_server.utils.mlx_backend import why_builds_conflict, why_mlx_cannot_run
from mlx_manager.mlx_server.utils.terminal import terminal_watch
from mlx_manager.streams import open_closed_streams

logger = logging.getLogger(__name__)

LAST_ERRORS_SECONDS = 2
DRAIN_POLL_SECONDS = 0.05


def create_app(settings: MLXServerSettings, bounds: Bounds | None = None) -> FastAPI:
    """The ASGI application. Without a lifespan it validates bodies and answers 503."""
    app = _App(
        title="MLX Manager",
        version=__version__,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # slow, and records query strings
    )
    app.state.settings = settings
    app.state.bounds = bounds = bounds if bounds is not None else Bounds()
    app.state.tracing = instrument(settings)
    app.state.metrics = Metrics(lambda model_id: _is_model(app, model_id))
    app.state.recent = RecentRequests()
    app.include_router(v1_router)  # first: FastAPI tries the routes in order
    app.include_router(embeddings_router)
    app.include_router(health_router)
    app.include_router(metrics_router)
    app.include_router(admin_router)
    app.include_router(live_router)
    app.include_router(setups_router)
    app.include_router(page_router)
    install_error_handlers(app)
    app.state.protocols = _protocols(settings)
    app.state.guard = guard_rules(settings)
    app.state.addresses = []
    app.add_middleware(Guard, bounds=bounds)
    return app


def _protocols(settings: MLXServerSettings) -> Protocols:
    status = settings.validation_error_status
    chat, completions = ChatCompletions(status), Completions(status)
    return Protocols([chat, completions, Messages(), Responses(), EmbeddingEndpoints(status)])


class _App(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        """Adds the exchange around FastAPI's own middlewares, the last of which answers unhandled exceptions."""
        inner = super().build_middleware_stack()
        routes = iter_route_contexts(self.routes)  # building the whole schema would take 0.2 s
        paths = frozenset(route.path_format for route in routes if route.path_format and route.include_in_schema)
        return ExchangeMiddleware(
            inner, self.state.metrics, self.state.recent, paths, spans=self.state.tracing.collected
        )


def _is_model(app: FastAPI, model_id: str) -> bool:
    """Whether a local or upstream model has this id."""
    server: ServerState | None = getattr(app.state, "server", None)
    return server is not None and server.inference.backends.has(model_id)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Starts the pool and the default model's worker. At the end, waits until all workers have exited."""
    _check_single_process()
    settings: MLXServerSettings = app.state.settings
    bounds: Bounds = app.state.bounds
    for line in warnings_of_environment():
        logger.warning("%s", line)
    if app.state.tracing.enabled:
        logger.info("LogFire instrumentation enabled")
    conflict = why_builds_conflict()
    if conflict is not None:
        logger.warning("%s", conflict)
    pool = _make_pool(settings, await asyncio.to_thread(catalog_of, settings), app.state.metrics, bounds)
    upstreams = Upstreams(settings.upstreams, bounds.upstream_poll_seconds)
    inference = InferenceService(
        Backends(pool, upstreams, settings.fallbacks, settings.aliases, prompt_rules(settings, bounds)),
        settings.request_timeout_seconds,
        settings.trace_content,
    )
    responses = ResponseStore(int(settings.response_store_mb * 2**20), settings.response_ttl_seconds)
    embedding = EmbeddingService(inference)
    app.state.server = ServerState(settings, pool, upstreams, inference, responses, embedding, int(time.time()))
    app.state.reloader = Reloader(app)
    set_running(Running(pool, inference.generate, lambda: app.state.settings.default_max_tokens))
    for model_id in dict.fromkeys([pool.catalog.default_id, *_preloaded(settings, pool.catalog)]):
        pool.preload(model_id)
    upstreams.start()
    watch = _watch_mac(settings, pool)
    try:
        yield
    finally:
        set_running(None)
        app.state.server = None
        if watch is not None:
            await watch.aclose()
        await upstreams.aclose()
        await pool.cleanup()


def _make_pool(settings: MLXServerSettings, catalog: Catalog, metrics: Metrics, bounds: Bounds) -> ModelPoolManager:
    return ModelPoolManager(
        catalog,
        _budget(settings),
        _worker_options(settings),
        max_queue=settings.max_queue,
        watchdog=WatchdogLimits(bounds.worker_timeout_seconds, bounds.step_timeout_seconds),
        keep_alive_seconds=settings.keep_alive,
        request_timeout_seconds=settings.request_timeout_seconds,
        metrics=metrics,
    )


def _worker_options(settings: MLXServerSettings) -> WorkerOptions:
    folder = settings.prefix_disk_folder
    return WorkerOptions(
        settings.inter_token_latency_ms,
        settings.wire_memory,
        warm_up=settings.warm_up,
        keep_bfloat16=settings.keep_bfloat16,
        prefix_disk_bytes=int(settings.prefix_disk_gb * BYTES_PER_GB),
        prefix_disk_folder=str(folder if folder is not None else cache_folder("prefixes")),
    )


def _watch_mac(settings: MLXServerSettings, pool: ModelPoolManager) -> MacWatch | None:
    mac = macos.this_mac()
    if mac is None:
        return None
    watch = MacWatch(pool, mac.memory_pressure, macos.SleepBlocker(os.getpid()) if settings.prevent_sleep else None)
    watch.start()
    return watch


def _preloaded(settings: MLXServerSettings, catalog: Catalog) -> list[str]:
    """The ids of the models to preload. An unknown name is logged and skipped."""
    known = [name for name in settings.preload if catalog.knows(name)]
    for name in settings.preload:
        if name not in known:
            logger.error("Cannot preload %r: unknown model. Use an id that GET /v1/models lists", name)
    return [catalog.resolve(name).id for name in known]


def _budget(settings: MLXServerSettings) -> Budget:
    device_defaults = frozenset({"max_memory_gb", "prefix_cache_gb"} - settings.model_fields_set)
    return Budget(
        limit_bytes=int(settings.max_memory_gb * BYTES_PER_GB),
        max_models=settings.max_models,
        prefix_cache_bytes=int(settings.prefix_cache_gb * BYTES_PER_GB),
        device_defaults=device_defaults,
        knows_device="max_memory_gb" not in device_defaults,
    )


def _check_single_process() -> None:
    """Raises RuntimeError under `uvicorn --workers 2`: each process would load every model."""
    words = " ".join(sys.argv).replace("=", " ").split()
    count = words[words.index("--workers") + 1] if "--workers" in words[:-1] else os.environ.get("WEB_CONCURRENCY", "1")
    if multiprocessing.parent_process() is not None and count != "1":
        raise RuntimeError("The server runs in one API process. Start uvicorn with one worker, without --workers.")


app: FastAPI
"""The application with the settings of this process, built on first access. Raises InvalidSettings."""


@functools.cache
def _app_of_this_process() -> FastAPI:
    return create_app(config.mlx_server_settings)


if not TYPE_CHECKING:  # a module __getattr__ would give every name a type

    def __getattr__(name: str) -> FastAPI:
        if name == "app":
            return _app_of_this_process()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def serve(bounds: Bounds | None = None) -> None:
    """Runs the server until a signal stops it. Running requests may finish within the drain timeout."""
    open_closed_streams()
    try:
        settings = config.mlx_server_settings
        app = _app_of_this_process() if bounds is None else create_app(settings, bounds)
    except InvalidSettings as exc:
        _exit_with(str(exc))
    configure_logging(settings.log_level, settings.log_format)
    fault = why_mlx_cannot_run() or why_default_is_missing(catalog_of(settings.model_copy(update={"hub_cache": False})))
    if fault is not None:
        _exit_with(fault)
    try:  # before loading anything
        listeners = listen(settings.host, settings.port)
    except OSError as exc:
        _exit_with(
            f"Cannot listen on {settings.host}:{settings.port}: {exc.strerror}. Choose another --host or --port."
        )
    app.state.addresses = addresses_of(listeners)
    too_open = why_too_open(settings, app.state.addresses)
    if too_open is not None:
        _exit_with(too_open)
    warn_if_exposed(settings, app.state.addresses)
    logger.info("Listening on http://%s:%d", settings.host, listeners[0].getsockname()[1])
    served = uvicorn.Config(
        app,
        loop="uvloop",
        http=_protocol(app.state.bounds),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_ERRORS_SECONDS,
    )
    if (mac := macos.this_mac()) is not None:
        mac.prefer_fast_cores()
    gc.collect()
    gc.freeze()  # keeps imported objects out of full collections, which would pause every stream
    _Server(served, app).run(listeners)


def _protocol(bounds: Bounds) -> type[GuardedProtocol]:
    limit = raise_descriptor_limit(bounds.max_connections)
    if limit is not None:
        logger.warning("The system limits this process to %d connections: raise `ulimit -n`", limit)
    return protocol_with(bounds)


def _exit_with(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    raise SystemExit(2)


class _Server(uvicorn.Server):
    """Drains before it stops, and exits with status 0: uvicorn raises the signal again, which looks like a crash.

    It still listens while it drains, so that clients get an answer, not a refused connection.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._state = app.state
        self._reloads: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        loop, terminal_was_closed = asyncio.get_running_loop(), terminal_watch()

        def handle_hangup(sig: int, frame: FrameType | None) -> None:
            if terminal_was_closed():
                self.handle_exit(sig, frame)
            else:
                loop.call_soon_threadsafe(self._reload)

        signal.signal(signal.SIGHUP, handle_hangup)
        yield

    def _reload(self) -> None:
        if getattr(self._state, "server", None) is not None:
            reloading = asyncio.create_task(reload_on_signal(self._state.reloader))
            self._reloads.add(reloading)
            reloading.add_done_callback(self._reloads.discard)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        server: ServerState | None = getattr(self._state, "server", None)
        if server is not None:
            server.pool.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """After the drain timeout, remaining requests get an error in their protocol before the connections close."""
        self._state.server.pool.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._state.settings.drain_timeout_seconds):
                while self.server_state.tasks and not self.force_exit:  # noqa: ASYNC110  uvicorn has no event for it
                    await asyncio.sleep(DRAIN_POLL_SECONDS)
        self._state.server.pool.abandon_requests()
        await self._state.server.upstreams.aclose()
        await super().shutdown(sockets)


if __name__ == "__main__":
    serve()
