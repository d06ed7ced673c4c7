"""The line of models that wait for a place, on the event loop. `Places` decides; the line waits and keeps time."""

import asyncio
import contextlib
import contextvars
import logging
import math
from collections.abc import Callable, Iterator, Sequence

from mlx_manager.mlx_server.errors import InsufficientMemory, NotReady
from mlx_manager.mlx_server.models.budget import Holding
from mlx_manager.mlx_server.models.places import TURN_SECONDS, Granted, Places, Refused, Wait

logger = logging.getLogger(__name__)


class Line:
    """`loaded` gives the loaded models, with `may_go` for those that may be evicted when they are idle; `evict` takes
    such a model and the one that it goes for.
    """

    def __init__(
        self,
        places: Places,
        loaded: Callable[[], Sequence[Holding]],
        evict: Callable[[str, str], None],
        request_timeout_seconds: float = 0,
    ) -> None:
        """A request may wait for half of its time; where it has no limit, for as long as it takes."""
        self.places = places
        self.request_timeout_seconds = request_timeout_seconds
        self._loaded = loaded
        self._evict = evict
        self._claims: dict[str, asyncio.Future[None]] = {}
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._over: str | None = None

    @property
    def max_wait_seconds(self) -> float:
        return self.request_timeout_seconds / 2 if self.request_timeout_seconds else math.inf

    @contextlib.contextmanager
    def standing(self, model_id: str) -> Iterator[None]:
        """The block waits for the model. A claim that no block waits for any more is cancelled."""
        self.places.want(model_id)
        try:
            yield
        finally:
            if self.places.leave(model_id):
                self.withdraw(model_id)
            self.settle()

    async def place(self, model_id: str, needed_bytes: int) -> None:
        """Returns when the model has a place; `Places.sit` or `Places.vacate` ends it. Raises InsufficientMemory when
        it would never get one, and CancelledError when those who waited have left or the waits were ended.
        """
        if self._over is not None:
            raise asyncio.CancelledError
        claim = self._claims[model_id] = asyncio.get_running_loop().create_future()
        self.places.claim(model_id, needed_bytes)
        began = self._now()
        try:
            self.settle()
            if not claim.done():
                self.announce()
                logger.info("Model %s waits for a place: %s in use", model_id, self._users())
            await claim
        finally:
            del self._claims[model_id]
            self.places.withdraw(model_id)
            self.settle()
        if self._now() > began:
            logger.info("Model %s has a place after %.1f s", model_id, self._now() - began)

    async def until(self, model_id: str, ready: Callable[[], bool]) -> None:
        """Waits until `ready`, which is asked again at each change in the line.

        Raises InsufficientMemory when the model waits for a place for too long, and NotReady when the waits are ended.
        """
        deadline = self._now() + self.max_wait_seconds
        while not ready():
            waits = self.places.has_claim(model_id) or model_id in self.places.closed()
            if waits and self._over is not None:
                raise NotReady(self._over)
            expected_seconds = self.places.expected_wait_seconds(model_id) if waits else 0.0
            if waits and self._now() + expected_seconds >= deadline:
                raise self._too_long(model_id, expected_seconds)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline if waits and deadline < math.inf else None):
                    await self._news.wait()

    def withdraw(self, model_id: str) -> None:
        """Ends the load that waits for a place, if there is one."""
        if self.places.has_claim(model_id):
            self.places.withdraw(model_id)
            self._claims[model_id].cancel()
            self.settle()

    def settle(self) -> None:
        """Does what can be done now. Call it after each change of what is loaded, leased, pinned or allowed."""
        closed = self.places.closed()
        if not (self._claims or closed):
            return
        while not isinstance(step := self.places.decide(self._loaded(), self._now()), Wait):
            self._carry_out(step)
        self._look_again_at(step.until)
        if self.places.closed() != closed:
            self.announce()

    def announce(self) -> None:
        """Wakes those in `until`."""
        self._news.set()
        self._news = asyncio.Event()

    def end_waits(self, reason: str) -> None:
        """Nothing waits for a place from now on: those that do get NotReady with `reason`."""
        self._over = reason
        for model_id in list(self._claims):
            self.withdraw(model_id)
        self.announce()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _carry_out(self, step: Granted | Refused) -> None:
        claim = self._claims[step.model_id]
        if isinstance(step, Refused):
            holdings = [*self._loaded(), *self.places.reserved()]
            message = self.places.budget.no_room_message(step.model_id, step.needed_bytes, holdings)
            claim.set_exception(InsufficientMemory(message, param="model"))
            return
        for victim in step.victims:
            self._evict(victim.model_id, step.model_id)
        claim.set_result(None)
        self.announce()

    def _look_again_at(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if until < math.inf:
            loop, of_no_request = asyncio.get_running_loop(), contextvars.Context()
            self._timer = loop.call_at(until, self.settle, context=of_no_request)

    def _users(self) -> str:
        return ", ".join(one.model_id for one in [*self._loaded(), *self.places.reserved()])

    def _too_long(self, model_id: str, expected_seconds: float) -> InsufficientMemory:
        retry_after_seconds = math.ceil(max(expected_seconds, TURN_SECONDS))
        return InsufficientMemory(
            f"Model {model_id!r} cannot get a place within {self.max_wait_seconds:g} s. Models in use: {self._users()}."
            f" Send the request again in {retry_after_seconds} s, or raise MLX_SERVER_MAX_MEMORY_GB or "
            "MLX_SERVER_MAX_MODELS.",
            param="model",
            retry_after_seconds=retry_after_seconds,
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
