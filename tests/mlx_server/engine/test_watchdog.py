import asyncio
import time

import pytest

from mlx_manager.mlx_server.engine.watchdog import Watchdog, WatchdogLimits

pytestmark = pytest.mark.anyio


async def verdict(watchdog: Watchdog, within_seconds: float) -> str | None:
    try:
        async with asyncio.timeout(within_seconds):
            return await watchdog.wait_until_unresponsive()
    except TimeoutError:
        return None


async def test_silence_beyond_the_limit_is_the_end() -> None:
    watchdog = Watchdog(WatchdogLimits(silence_seconds=0.1))
    watchdog.note_message()
    assert "has not responded" in (await verdict(watchdog, 5) or "")


async def test_worker_that_still_imports_has_more_time() -> None:
    watchdog = Watchdog(WatchdogLimits(silence_seconds=0.1))
    assert await verdict(watchdog, 1.2) is None
    assert watchdog.fault is None


async def test_step_beyond_its_limit_is_the_end_however_alive_the_worker_is() -> None:
    watchdog = Watchdog(WatchdogLimits(silence_seconds=30, step_seconds=5))
    watchdog.note_heartbeat(4.0)
    assert await verdict(watchdog, 1.2) is None
    watchdog.note_heartbeat(6.0)
    assert "busy with one step for 6 s" in (await verdict(watchdog, 5) or "")


async def test_time_in_which_this_process_was_held_up_itself_is_not_the_workers() -> None:
    watchdog = Watchdog(WatchdogLimits(silence_seconds=1.3))
    watchdog.note_message()
    watching = asyncio.create_task(verdict(watchdog, 2.2))
    await asyncio.sleep(0.1)
    time.sleep(1.6)  # noqa: ASYNC251  the event loop stands still
    assert await watching is None
