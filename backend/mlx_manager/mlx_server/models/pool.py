"""The loaded models, each with its worker process: loads on demand, lends them out, and lets idle ones go.

Runs on the event loop; only the reading of files and tokenizers goes to threads. A model that is leased is not let go
to make room; requests for a model that needs its place wait in line (`places.py`). What looks at who is loaded, and
acts on it, has no await between the two.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from mlx_manager.mlx_server.config import KEEP_FOREVER
from mlx_manager.mlx_server.engine.messages import Device, WorkerOptions
from mlx_manager.mlx_server.engine.watchdog import WatchdogLimits
from mlx_manager.mlx_server.engine.worker_client import WorkerClient
from mlx_manager.mlx_server.errors import NotReady
from mlx_manager.mlx_server.grammars.validation import GrammarValidator
from mlx_manager.mlx_server.models.admission import Admission
from mlx_manager.mlx_server.models.budget import Budget, Holding, least_bytes
from mlx_manager.mlx_server.models.catalog import Catalog, ModelEntry, locate
from mlx_manager.mlx_server.models.hub import Progress
from mlx_manager.mlx_server.models.line import Line
from mlx_manager.mlx_server.models.loaders import ModelLoader, estimate_bytes, logging_progress
from mlx_manager.mlx_server.models.loading import LoadedModel
from mlx_manager.mlx_server.models.places import Places, Seat
from mlx_manager.mlx_server.models.reports import LoadReport, PoolReports
from mlx_manager.mlx_server.models.resident import R, Resident, as_kind
from mlx_manager.mlx_server.models.residents import Residents
from mlx_manager.mlx_server.models.restarts import Restarts
from mlx_manager.mlx_server.models.running import get_model_pool
from mlx_manager.mlx_server.models.state import ModelState
from mlx_manager.mlx_server.observability import EvictionReason, Metrics

__all__ = ["LoadedModel", "ModelPoolManager", "ModelState", "get_model_pool"]

logger = logging.getLogger(__name__)

_SHUTTING_DOWN = "The server is shutting down. Send the request again later."
_UNLOADED = "Model %r was unloaded while it was being loaded. Send the request again to load it."


@dataclass(slots=True)
class _Load:
    """One that goes on."""

    task: "asyncio.Task[Resident]"
    progress: Progress


class ModelPoolManager:
    """Loads each model once, however many ask, and keeps as many as the budget of all workers together allows."""

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
        """A request waits for a place for half of `request_timeout_seconds` at most; 0 for no limit."""
        self.catalog = catalog
        self._places = Places(budget)
        self.admission = Admission(max_queue)
        self._reports = PoolReports(metrics if metrics is not None else Metrics(self.catalog.knows))
        self._residents = Residents(
            self._places, self.admission, self._reports, catalog.pinned(), self._idle_for_too_long
        )
        self.line = Line(self._places, self._residents.holdings, self._evict, request_timeout_seconds)
        self.grammars = GrammarValidator()
        self.draining = False
        self._loader = ModelLoader(options, watchdog)
        self._keep_alive_seconds = keep_alive_seconds
        self._restarts = Restarts(self._restart)
        self._kept: set[str] = set()
        self._loads: dict[str, _Load] = {}
        self._closed = False

    async def get_model(self, model_id: str) -> LoadedModel:
        """`load`, for a model that generates. Raises InvalidRequest for another kind."""
        return as_kind(LoadedModel, await self.load(model_id))

    async def load(self, model_id: str) -> Resident:
        """The model, loaded first if it has to be; only a lease keeps it from being evicted.

        Raises ModelNotFound, InsufficientMemory, ModelLoadFailed, and NotReady while its worker keeps crashing.
        A failed load reaches all who wait for it, and the next call tries again.
        """
        model, seat = await self._sit_down(await self.find(model_id))
        self._stand_up(seat)
        return model

    async def _sit_down(self, entry: ModelEntry) -> tuple[Resident, Seat]:
        """The model with a lease that has begun. There is no await between its end and the end of this call."""
        with self.line.standing(entry.id):
            while (model := self._serving(entry.id)) is None:
                await self._come_closer(entry)
            model.touch()
            return model, self._places.begin(entry.id)

    def _stand_up(self, seat: Seat) -> None:
        self._places.end(seat, asyncio.get_running_loop().time())
        self.line.settle()

    def _serving(self, model_id: str) -> Resident | None:
        """The model, if it takes requests now."""
        model = self._residents.get(model_id)
        return model if model is not None and model.engine.alive and not self._places.is_closed(model_id) else None

    async def _come_closer(self, entry: ModelEntry) -> None:
        """Waits for what keeps the model from serving: its last worker, its place, or its load."""
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
        """`lease_as` for a model that generates."""
        return self.lease_as(LoadedModel, model_id, sequences, keep_alive_seconds)

    @contextlib.asynccontextmanager
    async def lease_as(
        self, wanted: type[R], model_id: str | ModelEntry, sequences: int = 1, keep_alive_seconds: float | None = None
    ) -> AsyncIterator[R]:
        """Lends the model out for the block, for so many sequences: while it is leased it is not evicted.

        `keep_alive_seconds` says how long it stays when it is idle, from now on. Raises InvalidRequest for a model of
        another kind, ServerBusy when too many wait already, and NotReady when the server drains; else as `load` does.
        """
        if self.draining:
            raise NotReady(_SHUTTING_DOWN)
        entry = await self.find(model_id) if isinstance(model_id, str) else model_id
        await self._residents.check_kind(entry, wanted.kind)
        try:
            with self.admission.admit(entry.id, sequences):
                self._residents.is_used(entry.id)
                model, seat = await self._sit_down(entry)
                try:
                    yield as_kind(wanted, model)  # its files may have been downloaded meanwhile
                finally:
                    model.touch()
                    self._stand_up(seat)
                    if keep_alive_seconds is not None:
                        model.keep_alive_seconds = keep_alive_seconds
        finally:
            self._watch_idleness(entry.id)

    async def unload_model(self, model_id: str) -> bool:
        """Ends the model's worker, and with it whatever it is generating, or its load. False when there was neither."""
        model_id = self.catalog.resolve(model_id).id
        model, load = self._residents.get(model_id), self._loads.get(model_id)
        if model is not None:
            model.engine.abandon(NotReady(f"Model {model_id!r} was unloaded while it was at work."))
            leaving = self._let_go(model, "asked")
            self.line.settle()
            await asyncio.shield(leaving)
            return True
        self._kept.discard(model_id)
        self._restarts.forget(model_id)
        if load is None:
            return False
        load.task.cancel()
        await asyncio.wait({load.task})
        return True

    async def find(self, model_id: str, other_ids: Iterable[str] = ()) -> ModelEntry:
        """The model's entry, looked for once more where it is not known: its files may have come since.

        Raises ModelNotFound, as `Catalog.resolve` does.
        """
        if not self.catalog.knows(model_id):
            await asyncio.to_thread(self.catalog.refresh)
        return self.catalog.resolve(model_id, other_ids)

    def pin(self, model_id: str, pinned: bool = True) -> None:
        """A pinned model is not let go to make room, nor for being idle."""
        model_id = self.catalog.resolve(model_id).id
        (self._residents.pinned.add if pinned else self._residents.pinned.discard)(model_id)
        self._watch_idleness(model_id)
        self.line.settle()

    def is_pinned(self, model_id: str) -> bool:
        return model_id in self._residents.pinned

    @property
    def budget(self) -> Budget:
        return self._places.budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        self._places.budget = budget
        self.line.settle()

    def use_catalog(self, catalog: Catalog, keep_alive_seconds: float) -> None:
        """From now on. What is loaded goes on as it is; a model that is not there any more leaves when it is idle."""
        watched = self._residents.use_catalogs(self.catalog, catalog, self._keep_alive_seconds, keep_alive_seconds)
        self.catalog, self._keep_alive_seconds = catalog, keep_alive_seconds
        for model_id in watched:
            self._watch_idleness(model_id)
        self.line.settle()

    def get_loaded_models(self) -> list[str]:
        return self._residents.ids()

    def is_loaded(self, model_id: str) -> bool:
        return model_id in self._residents

    def is_leaving(self, model_id: str) -> bool:
        """Whether its last worker is ending."""
        return model_id in self._residents.leaving

    def loaded(self, model_id: str) -> Resident | None:
        return self._residents.get(model_id)

    def keep_alive_seconds(self, entry: ModelEntry) -> float:
        """How long the model stays when it is idle; negative for ever."""
        model = self._residents.get(entry.id)
        if model is not None:
            return model.keep_alive_seconds
        return entry.ttl_seconds(self._keep_alive_seconds)

    def expires_in_seconds(self, model_id: str) -> float | None:
        """Until it is unloaded if nobody asks for it."""
        return self._residents.expires_in_seconds(model_id)

    def holdings(self) -> list[Holding]:
        """What of the budget is spoken for."""
        return [*self._residents.holdings(), *self._places.reserved()]

    def used_bytes(self) -> int:
        """All that workers hold, and what models that are being loaded need."""
        return self._residents.held_bytes() + sum(one.nbytes for one in self._places.reserved())

    def state(self, model_id: str) -> ModelState:
        """Of the model with that id of the catalogue."""
        model, crash = self._residents.get(model_id), self._restarts.last_crash(model_id)
        if model is not None:
            fault = model.engine.fault
            return ModelState("ready") if fault is None else ModelState("not_responding", fault)
        if crash is not None and model_id in self._kept:
            return ModelState("restarting", crash.reason, crash)
        if model_id in self._loads:
            return ModelState("loading", progress=self._loads[model_id].progress)
        failure = self._restarts.last_failure(model_id)
        return ModelState("ready") if failure is None else ModelState("failed", failure.message)

    def preload(self, model_id: str) -> None:
        """Starts to load the model, again and again while that crashes; `state` tells what comes of it."""
        self._kept.add(model_id)
        if model_id not in self._residents:
            load = self._load_once(self.catalog.resolve(model_id))
            self._places.want(model_id)
            load.task.add_done_callback(lambda done: self._places.leave(model_id))

    def drain(self) -> None:
        """From now on no request begins, and those that wait for a place end. What runs or is being loaded goes on."""
        self.draining = True
        self.line.end_waits(_SHUTTING_DOWN)

    def abandon_requests(self) -> None:
        """Fails every request, those that wait for a load among them, for a shutdown that can wait no longer."""
        self.drain()
        self._restarts.forget_all()
        for load in self._loads.values():
            load.task.cancel()
        for model in self._residents:
            model.engine.abandon(NotReady(_SHUTTING_DOWN))

    async def cleanup(self) -> None:
        """Ends all workers; nothing can be loaded afterwards."""
        self._closed = True
        self.line.end_waits(_SHUTTING_DOWN)
        self._restarts.forget_all()
        loads = [load.task for load in self._loads.values()]
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        for model in self._residents:
            self._let_go(model, "shutdown")
        await asyncio.gather(*self._residents.leaving.values())
        self.line.close()
        self._residents.close()
        await asyncio.gather(self.grammars.close(), asyncio.to_thread(self._loader.close))

    def _load_once(self, entry: ModelEntry) -> _Load:
        if self._closed:
            raise NotReady(_SHUTTING_DOWN)
        load = self._loads.get(entry.id)
        if load is None:
            progress = Progress()
            load = _Load(asyncio.create_task(self._load(entry, progress)), progress)
            self._loads[entry.id] = load
            load.task.add_done_callback(lambda done: self._load_ended(entry.id, done))
        return load

    def _load_ended(self, model_id: str, task: "asyncio.Task[Resident]") -> None:
        del self._loads[model_id]
        if model_id not in self._residents:
            self._places.vacate(model_id)
        if not task.cancelled():
            self._restarts.load_ended(model_id, task.exception(), restart=model_id in self._kept)
        self._residents.share_out()
        self.line.settle()
        self.line.announce()
        self._watch_idleness(model_id)

    async def _load(self, entry: ModelEntry, progress: Progress) -> Resident:
        with self._reports.load(entry.id) as report:
            async with logging_progress(entry.id, progress):
                model = await self._load_now(entry, progress, report)
        model.keep_alive_seconds = self.catalog.ttl_seconds(entry.id, self._keep_alive_seconds)  # as it is by now
        self._residents.add(model)
        self._kept.add(entry.id)
        return model

    async def _load_now(self, entry: ModelEntry, progress: Progress, report: LoadReport) -> Resident:
        folder = await locate(entry, progress)
        progress.stage, progress.done_bytes = "waiting", 0
        progress.total_bytes = await asyncio.to_thread(estimate_bytes, entry, folder)
        with report.waiting():
            await self.line.place(entry.id, least_bytes(progress.total_bytes))
        while self._residents.leaving:  # a worker that ends still has its memory
            await asyncio.wait(self._residents.leaving.values())
        self._residents.share_out()
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
        """A worker died at work: its model gets a new one unasked, so that the next request does not wait for it."""
        model = self._residents.get(engine.model_id)
        if model is not None and model.engine is engine:
            self._residents.remove(model)
            self._residents.share_out()
            self._reports.died(model.model_id, engine.exit_reason)
            self._restarts.crashed(model.model_id, engine.exit_reason, time.time() - model.loaded_at, restart=True)
            self.line.settle()

    def _restart(self, model_id: str) -> None:
        if not self._closed and self.catalog.has(model_id):
            self.preload(model_id)

    def _evict(self, model_id: str, for_model: str) -> None:
        model = self._residents.get(model_id)
        if model is not None:
            self._let_go(model, "room", for_model)

    def _let_go(self, model: Resident, reason: EvictionReason, for_model: str | None = None) -> "asyncio.Task[None]":
        self._kept.discard(model.model_id)
        self._restarts.forget(model.model_id)
        return self._residents.let_go(model, reason, for_model)

    def _watch_idleness(self, model_id: str) -> None:
        if not self._closed:
            self._residents.watch_idleness(model_id, may_stay=self.catalog.has(model_id))

    def _idle_for_too_long(self, model_id: str) -> None:
        model = self._residents.get(model_id)
        if model is not None:
            logger.info("Unloading model %s: it was idle", model_id)
            self._let_go(model, "idle")
            self.line.settle()
