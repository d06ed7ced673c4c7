"""The loaded models: the memory that each holds, its share of the budget, its idle timer, and its unloading.

Runs on the event loop. Does not load models, and does not decide which models to evict.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator

from mlx_manager.mlx_server.engine.messages import Device
from mlx_manager.mlx_server.errors import InsufficientMemory
from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.models.admission import Admission
from mlx_manager.mlx_server.models.budget import Budget, Holding, min_bytes
from mlx_manager.mlx_server.models.catalog import Catalog, ModelEntry
from mlx_manager.mlx_server.models.idleness import IdleTimers
from mlx_manager.mlx_server.models.kinds import check_kind
from mlx_manager.mlx_server.models.places import Places
from mlx_manager.mlx_server.models.reports import PoolReports
from mlx_manager.mlx_server.models.resident import Resident
from mlx_manager.mlx_server.observability import EvictionReason
from mlx_manager.mlx_server.utils.memory import bytes_text

logger = logging.getLogger(__name__)


class Residents:
    """Calls `expired` with the id of a model whose idle time is over."""

    def __init__(
        self,
        places: Places,
        admission: Admission,
        reports: PoolReports,
        pinned: set[str],
        expired: Callable[[str], None],
    ) -> None:
        self.pinned = pinned
        self.unloading: dict[str, asyncio.Task[None]] = {}
        """The tasks that end workers, by model id."""
        self._loaded: dict[str, Resident] = {}
        self._places = places
        self._admission = admission
        self._reports = reports
        self._idle = IdleTimers(expired)

    def __iter__(self) -> Iterator[Resident]:
        return iter(list(self._loaded.values()))

    def __contains__(self, model_id: str) -> bool:
        return model_id in self._loaded

    def get(self, model_id: str) -> Resident | None:
        return self._loaded.get(model_id)

    async def check_kind(self, entry: ModelEntry, wanted: ModelKind) -> None:
        """Raises InvalidRequest before the load, if the model is known to be of another kind."""
        model = self.get(entry.id)
        kind = model.kind if model is not None else await asyncio.to_thread(lambda: entry.kind)
        if kind is not None:
            check_kind(entry.id, kind, wanted)

    def ids(self) -> list[str]:
        return list(self._loaded)

    def holdings(self) -> list[Holding]:
        """The holdings of the loaded models. Pinned models are not evictable."""
        return [self._holding(model) for model in self]

    def held_bytes(self) -> int:
        """Bytes that the workers hold: weights, KV caches, cached prefixes and freed buffers."""
        return sum(model.engine.stats.active_bytes + model.engine.stats.cache_bytes for model in self)

    def is_generating(self) -> bool:
        return any(model.kind == "generate" and model.engine.pending > 0 for model in self)

    def send_limits(self) -> None:
        """Sends every worker its new share of the budget."""
        shares = self._places.budget.shares([*self.holdings(), *self._places.reserved()])
        for model in self:
            model.engine.limit(shares[model.model_id])

    def use_budget(self, budget: Budget) -> None:
        self._places.budget = budget
        self.send_limits()

    def use_device(self, model_id: str, device: Device) -> None:
        """Adapts the budget to a worker's device. Raises InsufficientMemory if the loading model does not fit."""
        budget = self._places.budget.on_device(device)
        if budget != self._places.budget:
            logger.info(
                "Workers compute on %s; the memory budget is %s", device.backend, bytes_text(budget.limit_bytes)
            )
            self.use_budget(budget)
        others = [one for one in [*self.holdings(), *self._places.reserved()] if one.model_id != model_id]
        for needed in (one.nbytes for one in self._places.reserved() if one.model_id == model_id):
            if not budget.fits(needed, others):
                raise InsufficientMemory(budget.no_room_message(model_id, needed, others), param="model")

    def use_catalogs(self, before: Catalog, after: Catalog, old_seconds: float, new_seconds: float) -> list[str]:
        """Applies pins and TTLs of the new catalog. Returns the models whose idle timers must restart."""
        unpinned, pinned = before.pinned() - after.pinned(), after.pinned() - before.pinned()
        self.pinned = {one for one in (self.pinned - unpinned) | pinned if after.has(one)}
        watched = []
        for model in self:
            old = before.ttl_seconds(model.model_id, old_seconds)
            new = after.ttl_seconds(model.model_id, new_seconds)
            if model.keep_alive_seconds == old:  # unless a request has set another
                model.keep_alive_seconds = new
            if old != new or model.model_id in unpinned | pinned or not after.has(model.model_id):
                watched.append(model.model_id)
        return watched

    def add(self, model: Resident) -> None:
        """Adds a model that was loaded into a reserved place."""
        self._places.occupy(model.model_id, asyncio.get_running_loop().time())
        self._loaded[model.model_id] = model

    def remove(self, model: Resident) -> None:
        """Removes a model and frees its place."""
        del self._loaded[model.model_id]
        self._places.vacate(model.model_id)
        self._idle.cancel(model.model_id)

    def unload(self, model: Resident, reason: EvictionReason, for_model: str | None = None) -> "asyncio.Task[None]":
        """Removes the model at once and ends its worker in a task. The task's end frees the memory."""
        self._reports.evicted(model.model_id, reason, for_model)
        self.remove(model)
        task = self.unloading[model.model_id] = asyncio.create_task(model.engine.close())
        task.add_done_callback(lambda done: self._unloaded(model.model_id))
        return task

    def watch_idleness(self, model_id: str, *, may_stay: bool) -> None:
        """Starts the idle timer of an idle model. Without `may_stay` the timer expires at once."""
        model = self._loaded.get(model_id)
        self._idle.cancel(model_id)
        if model is None or model_id in self.pinned or self._admission.admitted(model_id) > 0:
            return
        seconds = model.keep_alive_seconds if may_stay else 0
        if seconds >= 0:
            self._idle.start(model_id, seconds)

    def longest_idle(self) -> Resident | None:
        """The least recently used model that is neither busy nor pinned."""
        idle = [model for model in self if model.model_id not in self.pinned and not self._in_use(model)]
        return min(idle, key=lambda model: model.last_used, default=None)

    def mark_used(self, model_id: str) -> None:
        self._idle.cancel(model_id)

    def expires_in_seconds(self, model_id: str) -> float | None:
        return self._idle.remaining_seconds(model_id)

    def close(self) -> None:
        self._idle.cancel_all()

    def _unloaded(self, model_id: str) -> None:
        del self.unloading[model_id]
        logger.info("Model unloaded: %s", model_id)
        self.send_limits()

    def _in_use(self, model: Resident) -> bool:
        return self._admission.admitted(model.model_id) > 0

    def _holding(self, model: Resident) -> Holding:
        stats = model.engine.stats
        kv_bytes = stats.active_bytes - stats.prefix_bytes - model.weights_bytes if self._in_use(model) else 0
        return Holding(
            model.model_id,
            min_bytes(model.weights_bytes, kv_bytes),
            model.last_used,
            evictable=model.model_id not in self.pinned,
        )
