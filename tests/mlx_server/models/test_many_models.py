"""A pool with models of several sizes and families: who goes, who stays, and how they share the machine."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.errors import InsufficientMemory, ModelLoadFailed, NotReady
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.models.catalog import Catalog
from tests.pools import GREEDY, generate, pool_of, pool_over, until_unloaded
from tests.running_server import eventually
from tests.small_models import make_random_model

pytestmark = pytest.mark.anyio

MB = 2**20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of about 0.7, 1.4 and 3 MB in float32."""
    parent = tmp_path_factory.mktemp("several")
    return {
        "small": make_random_model(parent / "small", model_type="llama"),
        "medium": make_random_model(parent / "medium", model_type="qwen2", hidden_size=128, seed=1),
        "large": make_random_model(parent / "large", model_type="gemma", hidden_size=256, seed=2),
    }


async def sizes(folders: dict[str, Path]) -> dict[str, int]:
    """What each takes in a worker."""
    async with pool_of(*folders.values()) as pool:
        return {model_id: (await pool.get_model(model_id)).weights_bytes for model_id in folders}


async def test_models_of_several_families_decode_side_by_side_within_the_budget(folders: dict[str, Path]) -> None:
    async with (
        pool_of(*folders.values(), max_memory_gb=0.25) as pool,
        pool.lease("small") as small,
        pool.lease("medium") as medium,
        pool.lease("large") as large,
    ):
        answers = await asyncio.gather(*(generate(model, 20) for model in (small, medium, large)))
        assert [len(answer) for answer in answers] == [20, 20, 20]
        limits = [model.engine.limits for model in (small, medium, large)]
        assert sum(limit.memory_bytes for limit in limits) <= 0.25 * 2**30
        assert sum(limit.prefix_cache_bytes for limit in limits) <= 2**26
        assert len({limit.buffer_bytes for limit in limits}) == 1


async def test_shares_that_go_down_and_up_again_do_not_add_up(folders: dict[str, Path]) -> None:
    """The worker has not answered in between."""
    async with pool_of(folders["small"], max_memory_gb=0.25) as pool:
        engine = (await pool.get_model("small")).engine
        full, longest = engine.limits, engine.largest_sequence_tokens
        half = msgspec.structs.replace(full, memory_bytes=full.memory_bytes // 2)
        for _ in range(4):
            engine.limit(half)
            assert 0.3 * longest < engine.largest_sequence_tokens < 0.6 * longest
            engine.limit(full)
        assert engine.largest_sequence_tokens == longest


async def test_shares_are_split_anew_when_a_model_comes_or_goes(folders: dict[str, Path]) -> None:
    async with pool_of(*folders.values(), max_memory_gb=0.25) as pool:
        small = await pool.get_model("small")
        alone, longest_alone = small.engine.limits.memory_bytes, small.engine.largest_sequence_tokens
        assert alone == pool.budget.limit_bytes
        await pool.get_model("large")
        assert small.engine.limits.memory_bytes < 0.6 * alone
        assert len(await generate(small)) == 5
        assert small.engine.largest_sequence_tokens < 0.6 * longest_alone
        await pool.unload_model("large")
        assert small.engine.limits.memory_bytes == alone
        assert len(await generate(small)) == 5  # its answer comes after the worker has told its new capacity
        assert small.engine.largest_sequence_tokens == longest_alone


async def test_what_runs_goes_on_when_its_share_becomes_smaller_and_gives_the_same_answer(
    folders: dict[str, Path],
) -> None:
    async with pool_of(*folders.values(), max_memory_gb=0.03) as pool, pool.lease("small") as small:
        undisturbed = await generate(small, 400)
        running = [asyncio.create_task(generate(small, 400)) for _ in range(8)]
        await pool.get_model("large")
        assert await asyncio.gather(*running) == [undisturbed] * 8


async def test_estimate_is_what_the_worker_then_holds(folders: dict[str, Path]) -> None:
    measured = await sizes(folders)
    for model_id, folder in folders.items():
        on_disk = (folder / "model.safetensors").stat().st_size
        assert measured[model_id] == pytest.approx(on_disk, rel=0.05)


async def test_large_model_evicts_as_few_as_it_must_the_least_recently_used_first(folders: dict[str, Path]) -> None:
    measured = await sizes(folders)
    room_gb = 1.2 * (measured["medium"] + measured["large"]) / 2**30
    async with pool_of(*folders.values(), max_memory_gb=room_gb) as pool:
        await pool.get_model("small")
        await pool.get_model("medium")
        await pool.get_model("large")
        assert set(pool.get_loaded_models()) == {"medium", "large"}


async def test_nobody_is_evicted_for_a_model_that_does_not_fit_beside_the_leased_ones(
    folders: dict[str, Path],
) -> None:
    measured = await sizes(folders)
    room_gb = 1.2 * (measured["small"] + measured["medium"] + measured["large"] / 2) / 2**30
    async with pool_of(*folders.values(), max_memory_gb=room_gb, request_timeout_seconds=0.2) as pool:
        await pool.get_model("small")
        async with pool.lease("medium"):
            with pytest.raises(InsufficientMemory, match="medium"):
                await pool.get_model("large")
            assert set(pool.get_loaded_models()) == {"small", "medium"}


async def test_pinned_model_is_not_evicted_until_it_is_unpinned(folders: dict[str, Path]) -> None:
    async with pool_of(*folders.values(), max_models=1) as pool:
        await pool.get_model("small")
        pool.pin("small")
        with pytest.raises(InsufficientMemory, match=r"it needs .* small \(\d\.\d\d MB\)"):
            await pool.get_model("medium")
        pool.pin("small", pinned=False)
        await pool.get_model("medium")
        assert pool.get_loaded_models() == ["medium"]


@pytest.mark.slow
async def test_model_that_is_asked_for_while_it_is_being_evicted_comes_back_and_nobody_fails(
    folders: dict[str, Path],
) -> None:
    """Three models take turns in one place, and each request waits for its model's."""

    async def ask(model_id: str) -> None:
        async with pool.lease(model_id) as model:
            assert model.model_id == model_id
            assert len(await generate(model)) == 5

    async with pool_of(*folders.values(), max_models=1) as pool:
        for _ in range(2):
            for model_id in folders:
                await asyncio.gather(*(ask(model_id) for _ in range(3)))
        await asyncio.gather(*(ask(model_id) for model_id in [*folders] * 4))
        evicting = asyncio.create_task(pool.unload_model(pool.get_loaded_models()[0]))
        await asyncio.gather(evicting, *(ask(model_id) for model_id in folders))
        async with pool.lease("small") as model:
            assert len(await generate(model)) == 5


async def test_no_more_workers_are_up_at_once_than_models_may_be(folders: dict[str, Path]) -> None:
    async with pool_of(*folders.values(), max_models=1) as pool:
        first = await pool.get_model("small")
        await pool.get_model("medium")
        assert not first.engine.alive
        assert first.engine.fault is not None  # gone, and not only told to go, before the next one was started


async def test_idle_model_is_unloaded_after_its_time_and_a_leased_one_is_not(folders: dict[str, Path]) -> None:
    async with pool_of(*folders.values(), keep_alive_seconds=0.2) as pool:
        async with pool.lease("small") as model:
            await asyncio.sleep(0.5)
            assert pool.expires_in_seconds("small") is None
            assert len(await generate(model)) == 5
        assert pool.expires_in_seconds("small") is not None
        await until_unloaded(pool, "small")
        assert pool.state("small").status == "ready"


async def test_keep_alive_of_a_request_holds_until_another_says_otherwise(folders: dict[str, Path]) -> None:
    async with pool_of(*folders.values()) as pool:
        async with pool.lease("small", keep_alive_seconds=0):
            async with pool.lease("small"):
                pass
            assert pool.is_loaded("small")  # somebody is at work with it
        await until_unloaded(pool, "small")
        async with pool.lease("small", keep_alive_seconds=300):
            pass
        remaining = pool.expires_in_seconds("small")
        assert remaining is not None
        assert 250 < remaining <= 300
        async with pool.lease("small", keep_alive_seconds=-1):
            pass
        assert pool.expires_in_seconds("small") is None
        assert pool.is_loaded("small")


async def test_pinned_model_does_not_expire(folders: dict[str, Path]) -> None:
    pinned = ModelSettings(id="mine", path=folders["small"], ttl=0, pin=True, aliases=["ours"])
    async with pool_over(Catalog("mine", [], models=[pinned])) as pool:
        async with pool.lease("ours") as model:
            assert model.model_id == "mine"
        assert pool.expires_in_seconds("mine") is None
        pool.pin("ours", pinned=False)
        await until_unloaded(pool, "mine")


async def test_load_that_is_unloaded_tells_all_who_wait_and_the_next_one_loads(folders: dict[str, Path]) -> None:
    async with pool_of(*folders.values()) as pool:
        waiting = [asyncio.create_task(pool.get_model("small")) for _ in range(3)]
        await asyncio.sleep(0)
        assert pool.state("small").status == "loading"
        assert await pool.unload_model("small") is True
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [NotReady] * 3
        assert "unloaded while it was loading" in str(outcomes[0])
        assert len(await generate(await pool.get_model("small"))) == 5


async def test_requests_of_a_model_that_is_unloaded_are_told_so(folders: dict[str, Path]) -> None:
    async with (
        pool_of(*folders.values()) as pool,
        pool.lease("small") as model,
        model.engine.generate([Submit(0, [1], 4000, [], GREEDY)]) as sequences,
    ):
        await anext(sequences)
        await pool.unload_model("small")
        with pytest.raises(NotReady, match="'small' was unloaded"):
            [tokens async for tokens in sequences]


async def test_one_who_stops_waiting_for_a_load_does_not_stop_it_for_the_others(folders: dict[str, Path]) -> None:
    async with pool_of(*folders.values()) as pool:
        impatient = asyncio.create_task(pool.get_model("small"))
        patient = asyncio.create_task(pool.get_model("small"))
        await asyncio.sleep(0.01)
        impatient.cancel()
        assert (await patient).model_id == "small"
        assert impatient.cancelled()


async def test_failed_load_gives_its_room_back(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = make_random_model(tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    async with pool_of(*folders.values(), broken, max_models=2) as pool:
        small = await pool.get_model("small")
        with pytest.raises(ModelLoadFailed):
            await pool.get_model("broken")
        assert len(pool.holdings()) == 1
        assert small.engine.limits.memory_bytes == pool.budget.limit_bytes


async def test_model_that_cannot_be_loaded_evicts_nobody(folders: dict[str, Path], tmp_path: Path) -> None:
    strange = make_random_model(tmp_path / "strange")
    (strange / "config.json").write_text('{"model_type": "perceptron"}')
    async with pool_of(*folders.values(), strange, max_models=1) as pool:
        await pool.get_model("small")
        with pytest.raises(ModelLoadFailed, match="mlx-lm does not support its model_type 'perceptron'"):
            await pool.get_model("strange")
        assert pool.get_loaded_models() == ["small"]


async def test_progress_of_a_load_counts_bytes(folders: dict[str, Path]) -> None:
    async with pool_of(*folders.values()) as pool:
        loading = asyncio.create_task(pool.get_model("large"))
        seen = []
        while not loading.done():
            progress = pool.state("large").progress
            if progress is not None:
                seen.append((progress.stage, progress.done_bytes, progress.total_bytes))
            await asyncio.sleep(0.005)
        assert "loading" in {stage for stage, _, _ in seen}
        assert all(0 <= done <= total for _, done, total in seen)
        assert seen[-1][2] == pytest.approx((await loading).weights_bytes, rel=0.05)


async def test_memory_of_an_unloaded_model_is_back(folders: dict[str, Path]) -> None:
    import psutil

    async with pool_of(*folders.values()) as pool:
        pid = (await pool.get_model("large")).engine.pid
        await pool.unload_model("large")
        eventually(lambda: psutil.pid_exists(pid), lambda there: not there)
        assert pool.holdings() == []
