"""The watch of a Mac's memory and sleep over a real pool, with the system's readings staged."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mlx_manager.mlx_server.models.mac_watch import CALM_POLLS, MacWatch
from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.utils.macos import MemoryPressure, SleepBlocker
from tests.pools import generate, pool_of, until
from tests.small_models import make_random_llama


class Machine:
    """Readings that a test sets."""

    def __init__(self) -> None:
        self.pressure = MemoryPressure.NORMAL


@asynccontextmanager
async def watched(
    pool: ModelPoolManager, machine: Machine, sleep_blocker: SleepBlocker | None = None
) -> AsyncIterator[None]:
    watch = MacWatch(pool, lambda: machine.pressure, sleep_blocker, poll_seconds=0.02)
    watch.start()
    try:
        yield
    finally:
        await watch.aclose()


async def test_pressure_takes_prefixes_and_idle_models_back_and_calm_gives_the_limits_again(
    babbler: Path, tmp_path: Path
) -> None:
    other = make_random_llama(tmp_path / "other")
    machine = Machine()
    async with pool_of(babbler, other) as pool, watched(pool, machine):
        model = await pool.get_model("babbler")
        await pool.get_model("other")
        async with pool.lease("babbler"):
            await generate(model, max_tokens=200)
            await until(lambda: model.engine.stats.prefix_bytes > 0 and model.engine.stats.cache_bytes > 0)
            usual = model.engine.limits

            machine.pressure = MemoryPressure.WARNING
            await until(lambda: model.engine.limits.prefix_cache_bytes == usual.prefix_cache_bytes // 2)
            await until(lambda: model.engine.stats.cache_bytes == 0)
            assert pool.is_loaded("other")

            machine.pressure = MemoryPressure.CRITICAL
            await until(lambda: not pool.is_loaded("other"))
            await until(lambda: model.engine.stats.prefix_bytes == 0)
            assert pool.is_loaded("babbler"), "a busy model stays"
            assert len(await generate(model)) == 5

            machine.pressure = MemoryPressure.NORMAL
            await until(lambda: model.engine.limits.buffer_bytes > 0)
            assert model.engine.limits.prefix_cache_bytes == 2 * usual.prefix_cache_bytes  # it is alone now


async def test_pinned_models_stay_under_pressure(babbler: Path) -> None:
    machine = Machine()
    machine.pressure = MemoryPressure.CRITICAL
    async with pool_of(babbler) as pool:
        await pool.get_model("babbler")
        pool.pin("babbler")
        async with watched(pool, machine):
            await until(lambda: pool.budget.pressure is MemoryPressure.CRITICAL)
            assert pool.is_loaded("babbler")
            pool.pin("babbler", pinned=False)
            await until(lambda: not pool.is_loaded("babbler"))


async def test_limits_rise_again_only_after_a_while_of_calm(babbler: Path) -> None:
    async with pool_of(babbler) as pool:
        heeded: list[MemoryPressure] = []

        def read() -> MemoryPressure:
            heeded.append(pool.budget.pressure)
            return MemoryPressure.WARNING if len(heeded) == 1 else MemoryPressure.NORMAL

        watch = MacWatch(pool, read, None, poll_seconds=0)
        watch.start()
        await until(lambda: len(heeded) > CALM_POLLS + 1)
        await watch.aclose()
        assert heeded[1 : CALM_POLLS + 1] == [MemoryPressure.WARNING] * CALM_POLLS
        assert heeded[CALM_POLLS + 1] is MemoryPressure.NORMAL


async def test_the_machine_may_sleep_only_while_no_request_runs(babbler: Path, tmp_path: Path) -> None:
    program, awake = tmp_path / "caffeinate", tmp_path / "awake"
    program.write_text(f"#!/bin/sh\ntouch {awake}\nexec sleep 1000\n")
    program.chmod(0o755)
    blocker = SleepBlocker(1, str(program))
    async with pool_of(babbler) as pool, watched(pool, Machine(), blocker):
        await pool.get_model("babbler")
        assert not awake.exists()
        async with pool.lease("babbler"):
            await until(awake.exists)
        await until(lambda: blocker.pid is None)
        async with pool.lease("babbler"):
            await until(lambda: blocker.pid is not None)
    assert blocker.pid is None
