"""The line of models that wait for a place. `Places` decides; `Line` waits and sets timers on the event loop."""

import asyncio
import contextlib
import contextvars
import logging
import math
from collections.abc import Callable, Iterator, Sequence

from mlx_manager.mlx_server.errors import InsufficientMemory, NotReady
from mlx_manager.mlx_server.models.budget import Holding
from mlx_manager.mlx_server.models.places import TURN_SECONDS, Granted, NeverFits, Places, Wait

logger = logging.getLogger(__name__)


class Line:
    """`loaded` returns the loaded models, with `evictable` set for those that may be evicted when idle.

    `evict` takes the model to evict and the model that needs its place.
    """

    def __init__(
        self,
        places: Places,
        loaded: Callable[[], Sequence[Holding]],
        evict: Callable[[str, str], None],
        request_timeout_seconds: float = 0,
    ) -> None:
        """A request may wait for half of `request_timeout_seconds`, or without limit where that is 0."""
        self.places = places
        self.request_timeout_seconds = request_timeout_seconds
        self._loaded = loaded
        self._evict = evict
        self._claims: dict[str, asyncio.Future[None]] = {}
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._end_reason: str | None = None

    @property
    def max_wait_seconds(self) -> float:
        return self.request_timeout_seconds / 2 if self.request_timeout_seconds else math.inf

    @contextlib.contextmanager
    def waiting_for(self, model_id: str) -> Iterator[None]:
        """Registers the block as waiting for the model. The last block that leaves cancels the model's claim."""
        self.places.join(model_id)
        try:
            yield
        finally:
            if self.places.leave(model_id):
                self.withdraw(model_id)
            self.settle()

    async def place(self, model_id: str, needed_bytes: int) -> None:
        """Waits until a place is reserved. `Places.occupy` or `Places.vacate` ends the reservation.

        Raises InsufficientMemory when the model can never fit, and CancelledError when the wait was cancelled.
        """
        if self._end_reason is not None:
            raise asyncio.CancelledError
        claim = self._claims[model_id] = asyncio.get_running_loop().create_future()
        self.places.claim(model_id, needed_bytes)
        began = self._now()
        try:
            self.settle()
            if not claim.done():
                self.notify()
                logger.info("Model %s waits for a place. Models in use: %s", model_id, self._users())
            await claim
        finally:
            del self._claims[model_id]
            self.places.withdraw(model_id)
            self.settle()
        if self._now() > began:
            logger.info("Model %s has a place after %.1f s", model_id, self._now() - began)

    async def until(self, model_id: str, ready: Callable[[], bool]) -> None:
        """Waits until `ready()`, which is evaluated after each change in the line.

        Raises InsufficientMemory when the model waits too long for a place, and NotReady after `end_waits`.
        """
        deadline = self._now() + self.max_wait_seconds
        while not ready():
            waits = self.places.has_claim(model_id) or model_id in self.places.closed()
            if waits and self._end_reason is not None:
                raise NotReady(self._end_reason)
            expected_seconds = self.places.expected_wait_seconds(model_id) if waits else 0.0
            if waits and self._now() + expected_seconds >= deadline:
                raise self._too_long(model_id, expected_seconds)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline if waits and deadline < math.inf else None):
                    await self._changed.wait()

    def withdraw(self, model_id: str) -> None:
        """Cancels the load that waits for a place, if there is one."""
        if self.places.has_claim(model_id):
            self.places.withdraw(model_id)
            self._claims[model_id].cancel()
            self.settle()

    def settle(self) -> None:
        """Grants or rejects what can be decided now. Call it after each change of models, leases, pins or budget."""
        closed = self.places.closed()
        if not (self._claims or closed):
            return
        while not isinstance(step := self.places.decide(self._loaded(), self._now()), Wait):
            self._apply(step)
        self._settle_at(step.until)
        if self.places.closed() != closed:
            self.notify()

    def notify(self) -> None:
        """Wakes all waiters in `until`."""
        self._changed.set()
        self._changed = asyncio.Event()

    def end_waits(self, reason: str) -> None:
        """Ends all waits for a place, present and future, with NotReady(`reason`)."""
        self._end_reason = reason
        for model_id in list(self._claims):
            self.withdraw(model_id)
        self.notify()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _apply(self, step: Granted | NeverFits) -> None:
        claim = self._claims[step.model_id]
        if isinstance(step, NeverFits):
            holdings = [*self._loaded(), *self.places.reserved()]
            message = self.places.budget.no_room_message(step.model_id, step.needed_bytes, holdings)
            claim.set_exception(InsufficientMemory(message, param="model"))
            return
        for victim in step.victims:
            self._evict(victim.model_id, step.model_id)
        claim.set_result(None)
        self.notify()

    def _settle_at(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if until < math.inf:
            loop, detached = asyncio.get_running_loop(), contextvars.Context()
            self._timer = loop.call_at(until, self.settle, context=detached)

    def _users(self) -> str:
        return ", ".join(one.model_id for one in [*self._loaded(), *self.places.reserved()])

    def _too_long(self, model_id: str, expected_seconds: float) -> InsufficientMemory:
        retry_after_seconds = math.ceil(max(expected_seconds, TURN_SECONDS))
        return InsufficientMemory(
            f"Model {model_id!r} cannot get a place within {self.max_wait_seconds:g} s. Models in use: {self._users()}."
            f" Retry after {retry_after_seconds} s, or raise MLX_SERVER_MAX_MEMORY_GB or "
            "MLX_SERVER_MAX_MODELS.",
            param="model",
            retry_after_seconds=retry_after_seconds,
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
