"""What the server does for the Mac that it runs on: keeps it awake during requests, and gives memory back to it.

Runs on the event loop. `main.py` starts it on macOS only; the system's calls are in `utils/macos.py`.
"""

import asyncio
import logging
from collections.abc import Callable

from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.utils.macos import MemoryPressure, SleepBlocker

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""Idle sleep takes a minute at least, and unloading a model about a second."""
CALM_POLLS = 15
"""Polls without pressure before the limits rise again, so that they do not swing."""


class MacWatch:
    """Polls the system and the pool. `sleep_blocker` is None where the machine may sleep."""

    def __init__(
        self,
        pool: ModelPoolManager,
        read_pressure: Callable[[], MemoryPressure],
        sleep_blocker: SleepBlocker | None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._pool = pool
        self._read_pressure = read_pressure
        self._sleep_blocker = sleep_blocker
        self._poll_seconds = poll_seconds
        self._calm_polls = 0
        self._polling: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._polling = asyncio.create_task(self._poll())

    async def aclose(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        if self._sleep_blocker is not None:
            await asyncio.to_thread(self._sleep_blocker.release)

    async def _poll(self) -> None:
        while True:
            if self._sleep_blocker is not None:
                change = self._sleep_blocker.block if self._pool.admission.is_busy else self._sleep_blocker.release
                await asyncio.to_thread(change)
            self._heed(self._read_pressure())
            await asyncio.sleep(self._poll_seconds)

    def _heed(self, pressure: MemoryPressure) -> None:
        """Shrinks the caches at once, and unloads one idle model in each poll of critical pressure."""
        before = self._pool.budget.pressure
        self._calm_polls = self._calm_polls + 1 if pressure < before else 0
        if pressure > before or self._calm_polls >= CALM_POLLS:
            log = logger.warning if pressure > MemoryPressure.NORMAL else logger.info
            log("Memory pressure of the system is %s: caches shrink or grow accordingly", pressure.name.lower())
            self._pool.heed_pressure(pressure)
            self._calm_polls = 0
        if pressure is MemoryPressure.CRITICAL:
            self._pool.unload_longest_idle()
