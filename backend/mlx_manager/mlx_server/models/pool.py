"""The loaded models, each with its worker process: loads on demand, lends them out, and lets idle ones go.

Runs on the event loop; only the reading of files and tokenizers goes to threads. A model that is leased, or that a
lease waits for, is not let go to make room. What looks at who is loaded, and acts on it, has no await between the two.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mlx_manager.mlx_server.config import KEEP_FOREVER
from mlx_manager.mlx_server.engine.client import EngineClient
from mlx_manager.mlx_server.engine.launch import EngineOptions
from mlx_manager.mlx_server.engine.watchdog import Patience
from mlx_manager.mlx_server.errors import InsufficientMemory, LoadingCrashed, ModelLoadFailed, NotReady, ServerError
from mlx_manager.mlx_server.grammars.validation import GrammarValidator
from mlx_manager.mlx_server.models.admission import Admission
from mlx_manager.mlx_server.models.budget import Budget, Holding, least_bytes
from mlx_manager.mlx_server.models.catalog import Catalog, ModelEntry, locate
from mlx_manager.mlx_server.models.hub import Progress
from mlx_manager.mlx_server.models.idleness import IdleTimers
from mlx_manager.mlx_server.models.loading import LoadedModel, estimate_bytes, load_model, told, worker_options
from mlx_manager.mlx_server.models.reports import PoolReports
from mlx_manager.mlx_server.models.restarts import Restarts
from mlx_manager.mlx_server.models.running_pool import get_model_pool, set_running_pool
from mlx_manager.mlx_server.models.state import ModelState
from mlx_manager.mlx_server.observability import EvictionReason, Metrics
from mlx_manager.mlx_server.templates.rendering import TemplateRenderer
from mlx_manager.mlx_server.utils.memory import BYTES_PER_GB

__all__ = ["LoadedModel", "ModelPoolManager", "ModelState", "get_model_pool", "set_running_pool"]

logger = logging.getLogger(__name__)

MAX_FAILURES = 256
"""Failed loads that are remembered for `state`: where any model may be downloaded, requests choose the ids."""
_SHUTTING_DOWN = "The server is shutting down. Send the request again later."
_UNLOADED = "Model %r was unloaded while it was being loaded. Send the request again to load it."


@dataclass(slots=True)
class _Load:
    """One that goes on. `reserved_bytes` is its part of the budget, once it has one."""

    task: "asyncio.Task[LoadedModel]"
    progress: Progress
    reserved_bytes: int | None = None


class ModelPoolManager:
    """Loads each model once, however many ask, and keeps as many as the limits allow.

    `options` and the limits are those of all workers together, which get their shares of them.
    """

    def __init__(
        self,
        catalog: Catalog,
        options: EngineOptions,
        *,
        max_models: int,
        max_memory_gb: float,
        max_queue: int = 256,
        patience: Patience = Patience(),  # noqa: B008  it is frozen
        keep_alive_seconds: float = KEEP_FOREVER,
        metrics: Metrics | None = None,
    ) -> None:
        self.catalog = catalog
        self.budget = Budget(int(max_memory_gb * BYTES_PER_GB), max_models, options.prefix_cache_bytes)
        self.admission = Admission(max_queue)
        self.grammars = GrammarValidator()
        self._templates = TemplateRenderer()
        self.draining = False
        self._options = options
        self._patience = patience
        self._keep_alive_seconds = keep_alive_seconds
        self._reports = PoolReports(metrics if metrics is not None else Metrics(self.catalog.knows))
        self._restarts = Restarts(self._restart)
        self._idle = IdleTimers(self._idle_for_too_long)
        self._kept: set[str] = set()
        self._pinned = catalog.pinned()
        self._loaded: dict[str, LoadedModel] = {}
        self._loads: dict[str, _Load] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, ServerError] = {}
        self._closed = False

    async def get_model(self, model_id: str) -> LoadedModel:
        """The model, loaded first if it has to be; only a `lease` keeps it from being evicted.

        Raises ModelNotFound, InsufficientMemory, ModelLoadFailed, and NotReady while its worker keeps crashing.
        A failed load reaches all who wait for it, and the next call tries again.
        """
        entry = await self.find(model_id)
        while (model := self._loaded.get(entry.id)) is not None:
            if model.engine.alive:
                model.touch()
                return model
            await model.engine.wait_until_buried()
        self._restarts.check_not_waiting(entry.id)
        loading = self._load_once(entry).task
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            if loading.cancelled():
                raise NotReady(_SHUTTING_DOWN if self.draining or self._closed else _UNLOADED % entry.id) from None
            raise

    @contextlib.asynccontextmanager
    async def lease(
        self, model_id: str, sequences: int = 1, keep_alive_seconds: float | None = None
    ) -> AsyncIterator[LoadedModel]:
        """Lends the model out for the block, to generate so many sequences: while it is leased it is not evicted.

        `keep_alive_seconds` says how long it stays when it is idle, from now on. Raises ServerBusy when too many wait
        already, and NotReady when the server drains; else as `get_model` does.
        """
        if self.draining:
            raise NotReady(_SHUTTING_DOWN)
        entry = await self.find(model_id)
        try:
            with self.admission.admit(entry.id, sequences):
                self._idle.cancel(entry.id)
                model = await self.get_model(entry.id)
                while self._loaded.get(entry.id) is not model:  # unloaded or dead between its load and our turn
                    model = await self.get_model(entry.id)
                try:
                    yield model
                finally:
                    model.touch()
                    if keep_alive_seconds is not None:
                        model.keep_alive_seconds = keep_alive_seconds
        finally:
            self._watch_idleness(entry.id)

    async def unload_model(self, model_id: str) -> bool:
        """Ends the model's worker, and with it whatever it is generating, or its load. False when there was neither."""
        model_id = self.catalog.resolve(model_id).id
        model, load = self._loaded.get(model_id), self._loads.get(model_id)
        if model is not None:
            model.engine.abandon_sequences(NotReady(f"Model {model_id!r} was unloaded while it was at work."))
            await asyncio.shield(self._let_go(model, "asked"))
            return True
        self._kept.discard(model_id)
        self._restarts.forget(model_id)
        if load is None:
            return False
        load.task.cancel()
        await asyncio.wait({load.task})
        return True

    async def find(self, model_id: str) -> ModelEntry:
        """The model's entry, looked for once more where it is not known: its files may have come since.

        Raises ModelNotFound.
        """
        if not self.catalog.knows(model_id):
            await asyncio.to_thread(self.catalog.refresh)
        return self.catalog.resolve(model_id)

    def pin(self, model_id: str, pinned: bool = True) -> None:
        """A pinned model is not let go to make room, nor for being idle."""
        model_id = self.catalog.resolve(model_id).id
        (self._pinned.add if pinned else self._pinned.discard)(model_id)
        self._watch_idleness(model_id)

    def is_pinned(self, model_id: str) -> bool:
        return model_id in self._pinned

    def use_catalog(self, catalog: Catalog, keep_alive_seconds: float) -> None:
        """From now on. What is loaded goes on as it is; a model that is not there any more leaves when it is idle."""
        before, stayed_seconds = self.catalog, self._keep_alive_seconds
        unpinned, pinned = before.pinned() - catalog.pinned(), catalog.pinned() - before.pinned()
        self.catalog, self._keep_alive_seconds = catalog, keep_alive_seconds
        self._pinned = {one for one in (self._pinned - unpinned) | pinned if catalog.has(one)}
        for model_id, model in self._loaded.items():
            old = before.ttl_seconds(model_id, stayed_seconds)
            new = catalog.ttl_seconds(model_id, keep_alive_seconds)
            if model.keep_alive_seconds == old:  # and no request has said another
                model.keep_alive_seconds = new
            if old != new or model_id in unpinned | pinned or not catalog.has(model_id):
                self._watch_idleness(model_id)

    def get_loaded_models(self) -> list[str]:
        return list(self._loaded)

    def is_loaded(self, model_id: str) -> bool:
        return model_id in self._loaded

    def is_leaving(self, model_id: str) -> bool:
        """Whether its last worker is ending."""
        return model_id in self._leaving

    def loaded(self, model_id: str) -> LoadedModel | None:
        return self._loaded.get(model_id)

    def keep_alive_seconds(self, entry: ModelEntry) -> float:
        """How long the model stays when it is idle; negative for ever."""
        model = self._loaded.get(entry.id)
        if model is not None:
            return model.keep_alive_seconds
        return entry.ttl_seconds(self._keep_alive_seconds)

    def expires_in_seconds(self, model_id: str) -> float | None:
        """Until it is unloaded if nobody asks for it."""
        return self._idle.remaining_seconds(model_id)

    def holdings(self) -> list[Holding]:
        """What of the budget is spoken for."""
        loads = [
            Holding(model_id, load.reserved_bytes, 0.0, may_go=False)
            for model_id, load in self._loads.items()
            if load.reserved_bytes is not None
        ]
        return [*map(self._holding, self._loaded.values()), *loads]

    def state(self, model_id: str) -> ModelState:
        """Of the model with that id of the catalogue."""
        model, crash = self._loaded.get(model_id), self._restarts.last_crash(model_id)
        if model is not None:
            complaint = model.engine.complaint
            return ModelState("ready") if complaint is None else ModelState("not_responding", complaint)
        if crash is not None and model_id in self._kept:
            return ModelState("restarting", crash.reason, crash)
        if model_id in self._loads:
            return ModelState("loading", progress=self._loads[model_id].progress)
        failure = self._failures.get(model_id)
        return ModelState("ready") if failure is None else ModelState("failed", failure.message)

    def preload(self, model_id: str) -> None:
        """Starts to load the model, again and again while that crashes; `state` tells what comes of it."""
        self._kept.add(model_id)
        if model_id not in self._loaded:
            self._load_once(self.catalog.resolve(model_id))

    def abandon_requests(self) -> None:
        """Fails every request, those that wait for a load among them, for a shutdown that can wait no longer."""
        self.draining = True
        self._restarts.forget_all()
        for load in self._loads.values():
            load.task.cancel()
        for model in self._loaded.values():
            model.engine.abandon_sequences(NotReady(_SHUTTING_DOWN))

    async def cleanup(self) -> None:
        """Ends all workers; nothing can be loaded afterwards."""
        self._closed = True
        self._restarts.forget_all()
        loads = [load.task for load in self._loads.values()]
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        for model in list(self._loaded.values()):
            self._let_go(model, "shutdown")
        await asyncio.gather(*self._leaving.values())
        self._idle.cancel_all()
        await asyncio.gather(self.grammars.close(), asyncio.to_thread(self._templates.close))

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

    def _load_ended(self, model_id: str, task: "asyncio.Task[LoadedModel]") -> None:
        del self._loads[model_id]
        if not task.cancelled():
            self._remember_outcome(model_id, task.exception())
        self._share_out()
        self._watch_idleness(model_id)

    def _remember_outcome(self, model_id: str, failure: BaseException | None) -> None:
        if isinstance(failure, LoadingCrashed):
            self._restarts.crashed(model_id, failure.message, 0.0, restart=model_id in self._kept)
        elif failure is None:
            self._failures.pop(model_id, None)
        else:
            self._restarts.forget(model_id)
            # One that found no room passes by itself, and an id outside of the catalogue has no state to show.
            if isinstance(failure, ModelLoadFailed) and self.catalog.knows(model_id):
                self._failures[model_id] = failure
                if len(self._failures) > MAX_FAILURES:
                    del self._failures[next(iter(self._failures))]

    async def _load(self, entry: ModelEntry, progress: Progress) -> LoadedModel:
        with self._reports.load(entry.id):
            async with told(entry.id, progress):
                model = await self._load_now(entry, progress)
        model.keep_alive_seconds = self.catalog.ttl_seconds(entry.id, self._keep_alive_seconds)  # as it is by now
        self._loads[entry.id].reserved_bytes = None
        self._loaded[entry.id] = model
        self._kept.add(entry.id)
        return model

    async def _load_now(self, entry: ModelEntry, progress: Progress) -> LoadedModel:
        folder = await locate(entry, progress)
        progress.stage, progress.done_bytes = "waiting", 0
        progress.total_bytes = await asyncio.to_thread(estimate_bytes, entry, folder)
        await self._make_room(entry.id, least_bytes(progress.total_bytes))
        while self._leaving:  # a worker that ends still has its memory
            await asyncio.wait(self._leaving.values())
        self._share_out()
        options = worker_options(self._options, self.budget.shares(self.holdings())[entry.id], entry)
        keep = self.keep_alive_seconds(entry)
        return await load_model(entry, folder, options, self._patience, keep, progress, self._templates, self._on_death)

    def _on_death(self, engine: EngineClient) -> None:
        """A worker died at work: its model gets a new one unasked, so that the next request does not wait for it."""
        model = self._loaded.get(engine.model_id)
        if model is not None and model.engine is engine:
            del self._loaded[model.model_id]
            self._idle.cancel(model.model_id)
            self._share_out()
            self._reports.died(model.model_id, engine.epitaph)
            self._restarts.crashed(model.model_id, engine.epitaph, time.time() - model.loaded_at, restart=True)

    def _restart(self, model_id: str) -> None:
        if not self._closed and self.catalog.has(model_id):
            self.preload(model_id)

    async def _make_room(self, model_id: str, needed_bytes: int) -> None:
        """Reserves a place and `needed_bytes`, and lets idle models go for it, but none when that does not suffice.

        Loads that go on are waited for where their end may help: they may fail, or leave an idle model behind.
        """
        while True:
            holdings = self.holdings()
            victims = self.budget.victims(needed_bytes, holdings)
            if victims is not None:
                for victim in victims:
                    self._let_go(self._loaded[victim.model_id], "room", model_id)
                self._loads[model_id].reserved_bytes = needed_bytes
                return
            others = {load.task for load in self._loads.values() if load.reserved_bytes is not None}
            loaded_alone = [one for one in holdings if one.model_id in self._loaded]
            if not others or self.budget.victims(needed_bytes, loaded_alone) is None:
                raise InsufficientMemory(self.budget.no_room_message(model_id, needed_bytes, holdings), param="model")
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)

    def _let_go(self, model: LoadedModel, reason: EvictionReason, for_model: str | None = None) -> "asyncio.Task[None]":
        """Takes the model out at once, and ends its worker in a task. Its memory is free when that is done."""
        model_id = model.model_id
        self._reports.leaves(model_id, reason, for_model)
        del self._loaded[model_id]
        self._kept.discard(model_id)
        self._restarts.forget(model_id)
        self._idle.cancel(model_id)
        task = self._leaving[model_id] = asyncio.create_task(model.engine.close())
        task.add_done_callback(lambda done: self._left(model_id))
        return task

    def _left(self, model_id: str) -> None:
        del self._leaving[model_id]
        logger.info("Model unloaded: %s", model_id)
        self._share_out()

    def _share_out(self) -> None:
        """Tells every worker its share of the machine, for one has come or gone."""
        for model_id, share in self.budget.shares(self.holdings()).items():
            if model_id in self._loaded:
                self._loaded[model_id].engine.limit(share)

    def _holding(self, model: LoadedModel) -> Holding:
        in_use = self.admission.admitted(model.model_id) > 0
        stats = model.engine.stats
        kv_bytes = stats.active_bytes - stats.prefix_bytes - model.weights_bytes if in_use else 0
        return Holding(
            model.model_id,
            least_bytes(model.weights_bytes, kv_bytes),
            model.last_used,
            may_go=not in_use and model.model_id not in self._pinned,
        )

    def _watch_idleness(self, model_id: str) -> None:
        """Has the model unloaded in its time, if it is idle now and nobody asks for it until then."""
        model = self._loaded.get(model_id)
        self._idle.cancel(model_id)
        if model is None or self._closed or not self._holding(model).may_go:
            return
        seconds = model.keep_alive_seconds if self.catalog.has(model_id) else 0
        if seconds >= 0:
            self._idle.start(model_id, seconds)

    def _idle_for_too_long(self, model_id: str) -> None:
        if model_id in self._loaded:
            logger.info("Unloading model %s: it was idle", model_id)
            self._let_go(self._loaded[model_id], "idle")
