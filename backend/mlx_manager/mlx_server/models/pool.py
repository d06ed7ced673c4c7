"""The model pool: loads models on demand, each in a worker process, leases them to requests and unloads idle ones.

Runs on the event loop; files and tokenizers are read in threads. A leased model is never evicted: a model that needs
its place waits in line (`places.py`). Code that checks the loaded models and acts on the result must not await between.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from mlx_manager.mlx_server.engine.messages import Device, WorkerOptions
from mlx_manager.mlx_server.engine.watchdog import WatchdogLimits
from mlx_manager.mlx_server.engine.worker_client import WorkerClient
from mlx_manager.mlx_server.errors import NotReady
from mlx_manager.mlx_server.grammars.validation import GrammarValidator
from mlx_manager.mlx_server.model_settings import KEEP_FOREVER
from mlx_manager.mlx_server.models.admission import Admission
from mlx_manager.mlx_server.models.budget import Budget, Holding, min_bytes
from mlx_manager.mlx_server.models.catalog import Catalog, ModelEntry, locate
from mlx_manager.mlx_server.models.hub import Progress
from mlx_manager.mlx_server.models.line import Line
from mlx_manager.mlx_server.models.loaders import ModelLoader, estimate_bytes, logging_progress
from mlx_manager.mlx_server.models.loading import LoadedModel
from mlx_manager.mlx_server.models.places import Place, Places
from mlx_manager.mlx_server.models.reports import LoadReport, PoolReports
from mlx_manager.mlx_server.models.resident import R, Resident, as_kind
from mlx_manager.mlx_server.models.residents import Residents
from mlx_manager.mlx_server.models.restarts import Restarts
from mlx_manager.mlx_server.models.running import get_model_pool
from mlx_manager.mlx_server.models.state import Load, ModelState
from mlx_manager.mlx_server.observability import EvictionReason, Metrics
from mlx_manager.mlx_server.utils.macos import MemoryPressure

__all__ = ["LoadedModel", "ModelPoolManager", "ModelState", "get_model_pool"]

logger = logging.getLogger(__name__)

_SHUTTING_DOWN = "The server is shutting down. Retry later."
_UNLOADED = "Model %r was unloaded while it was loading. Retry to load it again."


class ModelPoolManager:
    """Loads each model once for all requests, and keeps as many models loaded as the budget allows."""

    def __init__(
        self,
        catalog: Catalog,
        budget: Budget,
        options: WorkerOptions = WorkerOptions(),  # noqa: B008  it is frozen
        *,
        max_queue: int = 256,
        watchdog: WatchdogLimits = WatchdogLimits(),  # noqa: B008  it is frozen
        keep_alive_seconds: float = KEEP_FOREVER,
        request_timeout_seconds: float = 0,
        metrics: Metrics | None = None,
    ) -> None:
        """A request waits at most half of `request_timeout_seconds` for a place. 0 means no limit."""
        self.catalog = catalog
        self._places = Places(budget)
        self.admission = Admission(max_queue)
        self._reports = PoolReports(metrics if metrics is not None else Metrics(self.catalog.knows))
        self._residents = Residents(self._places, self.admission, self._reports, catalog.pinned(), self._idle_expired)
        self.line = Line(self._places, self._residents.holdings, self._evict, request_timeout_seconds)
        self.grammars = GrammarValidator()
        self.draining = False
        self._loader = ModelLoader(options, watchdog, self._residents.is_generating)
        self._keep_alive_seconds = keep_alive_seconds
        self._restarts = Restarts(self._restart)
        self._kept_loaded: set[str] = set()
        self._loads: dict[str, Load] = {}
        self._closed = False

    async def get_model(self, model_id: str) -> LoadedModel:
        """`load` for a generative model. Raises InvalidRequest for a model of another kind."""
        return as_kind(LoadedModel, await self.load(model_id))

    async def load(self, model_id: str) -> Resident:
        """Returns the model, and loads it first if necessary. Without a lease the pool may evict it at any time.

        Raises ModelNotFound, InsufficientMemory, ModelLoadFailed, and NotReady while its worker keeps crashing.
        A failed load raises in every waiting call, and the next call tries again.
        """
        model, place = await self._acquire(await self.find(model_id))
        self._release(place)
        return model

    async def _acquire(self, entry: ModelEntry) -> tuple[Resident, Place]:
        """Loads the model if necessary and begins a lease. Does not await after the lease has begun."""
        with self.line.waiting_for(entry.id):
            while (model := self._serving(entry.id)) is None:
                await self._wait_for_change(entry)
            model.touch()
            return model, self._places.begin(entry.id)

    def _release(self, place: Place) -> None:
        self._places.end(place, asyncio.get_running_loop().time())
        self.line.settle()

    def _serving(self, model_id: str) -> Resident | None:
        """The model, if it accepts requests now."""
        model = self._residents.get(model_id)
        return model if model is not None and model.engine.alive and not self._places.is_closed(model_id) else None

    async def _wait_for_change(self, entry: ModelEntry) -> None:
        """Waits for the exit of the model's last worker, for its place, or for its load."""
        model = self._residents.get(entry.id)
        if model is not None and not model.engine.alive:
            await model.engine.wait_until_exited()
        elif model is not None:
            await self.line.until(
                entry.id, lambda: self._residents.get(entry.id) is not model or self._serving(entry.id) is not None
            )
        else:
            self._restarts.check_not_waiting(entry.id)
            await self._await_load(entry)

    async def _await_load(self, entry: ModelEntry) -> None:
        loading = self._load_once(entry).task
        try:
            await self.line.until(entry.id, lambda: loading.done() or self._places.has_place(entry.id))
            await asyncio.shield(loading)
        except asyncio.CancelledError:
            if loading.cancelled():
                raise NotReady(_SHUTTING_DOWN if self.draining or self._closed else _UNLOADED % entry.id) from None
            raise

    def lease(
        self, model_id: str | ModelEntry, sequences: int = 1, keep_alive_seconds: float | None = None
    ) -> AbstractAsyncContextManager[LoadedModel]:
        """`lease_as` for a generative model."""
        return self.lease_as(LoadedModel, model_id, sequences, keep_alive_seconds)

    @contextlib.asynccontextmanager
    async def lease_as(
        self, wanted: type[R], model_id: str | ModelEntry, sequences: int = 1, keep_alive_seconds: float | None = None
    ) -> AsyncIterator[R]:
        """Leases the model for the block and for that many sequences. The pool does not evict a leased model.

        `keep_alive_seconds` sets how long the model stays loaded when idle. Raises InvalidRequest for a model of
        another kind, ServerBusy for a full queue, NotReady while the server drains, and what `load` raises.
        """
        if self.draining:
            raise NotReady(_SHUTTING_DOWN)
        entry = await self.find(model_id) if isinstance(model_id, str) else model_id
        await self._residents.check_kind(entry, wanted.kind)
        try:
            with self.admission.admit(entry.id, sequences):
                self._residents.mark_used(entry.id)
                model, place = await self._acquire(entry)
                try:
                    yield as_kind(wanted, model)  # a download may have changed the kind
                finally:
                    model.touch()
                    self._release(place)
                    if keep_alive_seconds is not None:
                        model.keep_alive_seconds = keep_alive_seconds
        finally:
            self._watch_idleness(entry.id)

    async def unload_model(self, model_id: str) -> bool:
        """Ends the model's worker and its requests, or cancels its load. False when the model was not loaded."""
        model_id = self.catalog.resolve(model_id).id
        load = self._loads.get(model_id)
        if (model := self._residents.get(model_id)) is not None:
            model.engine.abandon(
                NotReady(f"Model {model_id!r} was unloaded during the request. Retry to load it again.")
            )
            unloading = self._unload(model, "asked")
            self.line.settle()
            await asyncio.shield(unloading)
            return True
        self._kept_loaded.discard(model_id)
        self._restarts.forget(model_id)
        if load is None:
            return False
        load.task.cancel()
        await asyncio.wait({load.task})
        return True

    async def find(self, model_id: str, other_ids: Iterable[str] = ()) -> ModelEntry:
        """The model's entry. Refreshes the catalog first if it does not know the model.

        Raises ModelNotFound.
        """
        if not self.catalog.knows(model_id):
            await asyncio.to_thread(self.catalog.refresh)
        return self.catalog.resolve(model_id, other_ids)

    def pin(self, model_id: str, pinned: bool = True) -> None:
        """Pins or unpins a model. The pool does not evict pinned models, nor unload them when they are idle."""
        model_id = self.catalog.resolve(model_id).id
        (self._residents.pinned.add if pinned else self._residents.pinned.discard)(model_id)
        self._watch_idleness(model_id)
        self.line.settle()

    def is_pinned(self, model_id: str) -> bool:
        return model_id in self._residents.pinned

    @property
    def budget(self) -> Budget:
        return self._places.budget

    def heed_pressure(self, pressure: MemoryPressure) -> None:
        """Shrinks the caches of all workers, or lets them grow again."""
        self._residents.use_budget(replace(self.budget, pressure=pressure))

    def unload_longest_idle(self) -> None:
        """Unloads the least recently used model that is neither busy nor pinned, if there is one."""
        if (model := self._residents.longest_idle()) is not None:
            self._idle_expired(model.model_id)

    def use_catalog(self, catalog: Catalog, keep_alive_seconds: float) -> None:
        """Replaces the catalog. Loaded models stay as they are; a model that was removed is unloaded once idle."""
        watched = self._residents.use_catalogs(self.catalog, catalog, self._keep_alive_seconds, keep_alive_seconds)
        self.catalog, self._keep_alive_seconds = catalog, keep_alive_seconds
        for model_id in watched:
            self._watch_idleness(model_id)
        self.line.settle()

    def get_loaded_models(self) -> list[str]:
        return self._residents.ids()

    def is_loaded(self, model_id: str) -> bool:
        return model_id in self._residents

    def is_unloading(self, model_id: str) -> bool:
        """Whether the model's last worker is still ending."""
        return model_id in self._residents.unloading

    def loads(self) -> list[tuple[ModelEntry, Progress]]:
        """The models that are being downloaded or loaded."""
        return [(load.entry, load.progress) for load in self._loads.values()]

    def loaded(self, model_id: str) -> Resident | None:
        return self._residents.get(model_id)

    def keep_alive_seconds(self, entry: ModelEntry) -> float:
        """How long the model stays loaded when it is idle. Negative means for ever."""
        if (model := self._residents.get(entry.id)) is not None:
            return model.keep_alive_seconds
        return entry.ttl_seconds(self._keep_alive_seconds)

    def expires_in_seconds(self, model_id: str) -> float | None:
        """Seconds until the idle model is unloaded. None while it is busy or kept for ever."""
        return self._residents.expires_in_seconds(model_id)

    def holdings(self) -> list[Holding]:
        """The parts of the budget that are held or reserved."""
        return [*self._residents.holdings(), *self._places.reserved()]

    def used_bytes(self) -> int:
        """Bytes that workers hold, and bytes that are reserved for loads."""
        return self._residents.held_bytes() + sum(one.nbytes for one in self._places.reserved())

    def state(self, model_id: str) -> ModelState:
        """The state of the model with that id in the catalog."""
        model, crash = self._residents.get(model_id), self._restarts.last_crash(model_id)
        if model is not None:
            fault = model.engine.fault
            return ModelState("ready") if fault is None else ModelState("not_responding", fault)
        if crash is not None and model_id in self._kept_loaded:
            return ModelState("restarting", crash.reason, crash)
        if model_id in self._loads:
            return ModelState("loading", progress=self._loads[model_id].progress)
        failure = self._restarts.last_failure(model_id)
        return ModelState("ready") if failure is None else ModelState("failed", failure.message)

    def preload(self, model_id: str) -> None:
        """Starts to load the model, and again after each crash. `state` reports the result."""
        self._kept_loaded.add(model_id)
        if model_id not in self._residents:
            load = self._load_once(self.catalog.resolve(model_id))
            self._places.join(model_id)
            load.task.add_done_callback(lambda done: self._places.leave(model_id))

    def drain(self) -> None:
        """Rejects new requests and ends waits for a place. Running requests and loads continue."""
        self.draining = True
        self.line.end_waits(_SHUTTING_DOWN)

    def abandon_requests(self) -> None:
        """Fails every request, including those that wait for a load, at the end of the shutdown's grace period."""
        self.drain()
        self._restarts.forget_all()
        for load in self._loads.values():
            load.task.cancel()
        for model in self._residents:
            model.engine.abandon(NotReady(_SHUTTING_DOWN))

    async def cleanup(self) -> None:
        """Ends all workers. The pool cannot load models afterwards."""
        self._closed = True
        self.line.end_waits(_SHUTTING_DOWN)
        self._restarts.forget_all()
        loads = [load.task for load in self._loads.values()]
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        for model in self._residents:
            self._unload(model, "shutdown")
        await asyncio.gather(*self._residents.unloading.values())
        self.line.close()
        self._residents.close()
        await asyncio.gather(self.grammars.close(), asyncio.to_thread(self._loader.close))

    def _load_once(self, entry: ModelEntry) -> Load:
        if self._closed:
            raise NotReady(_SHUTTING_DOWN)
        load = self._loads.get(entry.id)
        if load is None:
            progress = Progress()
            load = Load(entry, asyncio.create_task(self._load(entry, progress)), progress)
            self._loads[entry.id] = load
            load.task.add_done_callback(lambda done: self._load_ended(entry.id, done))
        return load

    def _load_ended(self, model_id: str, task: "asyncio.Task[Resident]") -> None:
        del self._loads[model_id]
        if model_id not in self._residents:
            self._places.vacate(model_id)
        if not task.cancelled():
            self._restarts.load_ended(model_id, task.exception(), restart=model_id in self._kept_loaded)
        self._residents.send_limits()
        self.line.settle()
        self.line.notify()
        self._watch_idleness(model_id)

    async def _load(self, entry: ModelEntry, progress: Progress) -> Resident:
        with self._reports.load(entry.id) as report:
            async with logging_progress(entry.id, progress):
                model = await self._load_now(entry, progress, report)
        # settings may have changed during the load
        model.keep_alive_seconds = self.catalog.ttl_seconds(entry.id, self._keep_alive_seconds)
        self._residents.add(model)
        self._kept_loaded.add(entry.id)
        return model

    async def _load_now(self, entry: ModelEntry, progress: Progress, report: LoadReport) -> Resident:
        folder = await locate(entry, progress)
        progress.stage, progress.done_bytes = "waiting", 0
        progress.total_bytes = await asyncio.to_thread(estimate_bytes, entry, folder)
        with report.waiting():
            await self.line.place(entry.id, min_bytes(progress.total_bytes))
        while self._residents.unloading:  # a worker holds its memory until it has ended
            await asyncio.wait(self._residents.unloading.values())
        self._residents.send_limits()
        return await self._loader.load(
            entry,
            folder,
            self.budget.shares(self.holdings())[entry.id],
            progress,
            self.keep_alive_seconds(entry),
            on_death=self._on_death,
            on_device=lambda device: self._use_device(entry.id, device),
        )

    def _use_device(self, model_id: str, device: Device) -> None:
        self._residents.use_device(model_id, device)
        self.line.settle()

    def _on_death(self, engine: WorkerClient) -> None:
        """Restarts the worker of a model at once, so that the next request need not wait for it."""
        model = self._residents.get(engine.model_id)
        if model is not None and model.engine is engine:
            self._residents.remove(model)
            self._residents.send_limits()
            self._reports.worker_died(model.model_id, engine.exit_reason)
            self._restarts.crashed(model.model_id, engine.exit_reason, time.time() - model.loaded_at, restart=True)
            self.line.settle()

    def _restart(self, model_id: str) -> None:
        if not self._closed and self.catalog.has(model_id):
            self.preload(model_id)

    def _evict(self, model_id: str, for_model: str) -> None:
        if (model := self._residents.get(model_id)) is not None:
            self._unload(model, "room", for_model)

    def _unload(self, model: Resident, reason: EvictionReason, for_model: str | None = None) -> "asyncio.Task[None]":
        self._kept_loaded.discard(model.model_id)
        self._restarts.forget(model.model_id)
        return self._residents.unload(model, reason, for_model)

    def _watch_idleness(self, model_id: str) -> None:
        if not self._closed:
            self._residents.watch_idleness(model_id, may_stay=self.catalog.has(model_id))

    def _idle_expired(self, model_id: str) -> None:
        if (model := self._residents.get(model_id)) is not None:
            logger.info("Unloading idle model %s", model_id)
            self._unload(model, "idle")
            self.line.settle()
