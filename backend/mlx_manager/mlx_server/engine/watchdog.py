"""Detects unresponsive workers, by their heartbeats and by the duration of the current engine step."""

import asyncio
from dataclasses import dataclass

TICK_SECONDS = 0.5
QUIET_SECONDS = 5.0
"""A worker sends a heartbeat every second. It counts as unresponsive after this long without any message."""
START_SECONDS = 90.0
"""Extra time for the import of MLX, which precedes the first heartbeat."""


@dataclass(frozen=True, slots=True)
class WatchdogLimits:
    """How long a worker may send no message, and how long an engine step may take, before the worker is killed."""

    silence_seconds: float = 30.0
    step_seconds: float = 300.0


class Watchdog:
    """Watches one worker, on the event loop. Time during which this process itself was suspended does not count."""

    def __init__(self, limits: WatchdogLimits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._last_message_at = self._loop.time() + START_SECONDS
        self._step_seconds = 0.0
        self.expects_silence = False
        """Whether the worker cannot send anything now, however long that takes."""

    def note_message(self) -> None:
        self._last_message_at = self._loop.time()

    def note_heartbeat(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds

    @property
    def fault(self) -> str | None:
        """Why the worker counts as unresponsive, such as "has not responded for 7 s"; None while it responds."""
        limits = self._limits
        quiet_seconds = min(QUIET_SECONDS, limits.silence_seconds / 2)
        return self._fault(quiet_seconds, min(limits.silence_seconds, limits.step_seconds))

    async def wait_until_unresponsive(self) -> str:
        """Waits until the worker must be killed; returns the reason."""
        while True:
            slept_at = self._loop.time()
            await asyncio.sleep(TICK_SECONDS)
            if self._loop.time() - slept_at > 2 * TICK_SECONDS:  # the machine slept, or this process was suspended
                self.note_message()
            fault = self._fault(self._limits.silence_seconds, self._limits.step_seconds)
            if fault is not None:
                return fault

    def _fault(self, silence_limit: float, step_limit: float) -> str | None:
        silence_seconds = self._loop.time() - self._last_message_at
        if silence_seconds > silence_limit and not self.expects_silence:
            return f"has not responded for {silence_seconds:.0f} s"
        if self._step_seconds > step_limit:
            return f"has been busy with one step for {self._step_seconds:.0f} s"
        return None
