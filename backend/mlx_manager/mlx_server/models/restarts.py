"""Schedules the restart of crashed workers: at once, then after 1, 2, 4 ... 30 s while the crashes repeat."""

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from mlx_manager.mlx_server.errors import LoadingCrashed, ModelLoadFailed, NotReady

logger = logging.getLogger(__name__)

STABLE_SECONDS = 60.0
"""A worker that ran this long resets the count of crashes in a row."""
MAX_DELAY_SECONDS = 30.0
MAX_FAILURES = 256
"""Bounds the remembered failures, because with `allow_downloads` clients choose the ids."""


@dataclass(frozen=True, slots=True)
class Crash:
    """The last of `in_a_row` crashes. No worker starts before `retry_at`, in event loop time."""

    reason: str
    in_a_row: int
    retry_at: float

    @property
    def retry_in_seconds(self) -> float:
        return max(0.0, self.retry_at - asyncio.get_running_loop().time())


class Restarts:
    """Remembers crashes and failed loads of each model, and calls `restart` with its id when a restart is due."""

    def __init__(self, restart: Callable[[str], None]) -> None:
        self._restart = restart
        self._crashes: dict[str, Crash] = {}
        self._failures: dict[str, ModelLoadFailed] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def last_crash(self, model_id: str) -> Crash | None:
        return self._crashes.get(model_id)

    def last_failure(self, model_id: str) -> ModelLoadFailed | None:
        """The failure of the last load, or None if it succeeded."""
        return self._failures.get(model_id)

    def load_ended(self, model_id: str, failure: BaseException | None, *, restart: bool) -> None:
        if isinstance(failure, LoadingCrashed):
            self.crashed(model_id, failure.message, 0.0, restart=restart)
        elif failure is None:
            self._failures.pop(model_id, None)
        else:
            self.forget(model_id)
            if isinstance(failure, ModelLoadFailed):  # not InsufficientMemory, which is temporary
                self._failures[model_id] = failure
                if len(self._failures) > MAX_FAILURES:
                    del self._failures[next(iter(self._failures))]

    def crashed(self, model_id: str, reason: str, lived_seconds: float, *, restart: bool) -> None:
        """Records a crash after `lived_seconds`. Without `restart` the next request starts the next worker."""
        before = self._crashes.get(model_id)
        in_a_row = 1 if before is None or lived_seconds >= STABLE_SECONDS else before.in_a_row + 1
        delay_seconds = 0.0 if in_a_row == 1 else min(2.0 ** (in_a_row - 2), MAX_DELAY_SECONDS)
        loop = asyncio.get_running_loop()
        self._crashes[model_id] = Crash(reason, in_a_row, loop.time() + delay_seconds)
        if restart:
            logger.info("Restarting the worker of %s in %g s (%d crashes in a row)", model_id, delay_seconds, in_a_row)
            self._timers[model_id] = loop.call_later(delay_seconds, self._restart, model_id)

    def check_not_waiting(self, model_id: str) -> None:
        """Raises NotReady before the scheduled restart, so that requests do not start the worker earlier."""
        crash = self._crashes.get(model_id)
        if crash is not None and crash.retry_in_seconds > 0:
            raise NotReady(
                f"Model {model_id!r} crashed {crash.in_a_row} times in a row. {crash.reason} "
                f"Retry after {math.ceil(crash.retry_in_seconds)} s, when its worker has been restarted.",
                param="model",
                retry_after_seconds=math.ceil(crash.retry_in_seconds),
            )

    def forget(self, model_id: str) -> None:
        self._crashes.pop(model_id, None)
        timer = self._timers.pop(model_id, None)
        if timer is not None:
            timer.cancel()

    def forget_all(self) -> None:
        for model_id in list(self._crashes):
            self.forget(model_id)
