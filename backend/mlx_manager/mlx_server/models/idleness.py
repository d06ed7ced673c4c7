"""A timer for each idle model. Runs on the event loop; does not know the models."""

import asyncio
import contextvars
from collections.abc import Callable


class IdleTimers:
    """Calls `expired` with the id of each timer that runs out."""

    def __init__(self, expired: Callable[[str], None]) -> None:
        self._expired = expired
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def start(self, model_id: str, seconds: float) -> None:
        self.cancel(model_id)
        loop, detached = asyncio.get_running_loop(), contextvars.Context()  # not the context of the last request
        self._timers[model_id] = loop.call_later(seconds, self._expire, model_id, context=detached)

    def cancel(self, model_id: str) -> None:
        timer = self._timers.pop(model_id, None)
        if timer is not None:
            timer.cancel()

    def cancel_all(self) -> None:
        for model_id in list(self._timers):
            self.cancel(model_id)

    def remaining_seconds(self, model_id: str) -> float | None:
        timer = self._timers.get(model_id)
        return max(0.0, timer.when() - asyncio.get_running_loop().time()) if timer is not None else None

    def _expire(self, model_id: str) -> None:
        del self._timers[model_id]
        self._expired(model_id)
