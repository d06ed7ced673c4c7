"""The pool with real workers."""

import asyncio
import json
import logging
from pathlib import Path

import psutil
import pytest
import uvloop

from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.engine.worker import HEARTBEAT_SECONDS
from mlx_manager.mlx_server.errors import EngineFailed, InsufficientMemory, ModelLoadFailed, ModelNotFound, NotReady
from mlx_manager.mlx_server.models.adapters import DefaultAdapter, register_adapter
from mlx_manager.mlx_server.models.pool import get_model_pool
from mlx_manager.mlx_server.models.tokenization import Tokenizer
from tests.pools import GREEDY, generate, pool_of
from tests.small_models import make_random_llama

pytestmark = pytest.mark.anyio

ENDLESS = Submit(0, [1], 4000, [], GREEDY)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_llama(tmp_path_factory.mktemp("models") / "other", seed=1)


def weigh_down(folder: Path, nbytes: int) -> None:
    """Adds weights that mlx-lm does not know, of so many bytes. The file is sparse: nothing is written."""
    tensor = {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [0, nbytes]}
    header = json.dumps({"ballast": tensor}).encode()
    with (folder / "model-2.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + nbytes)


async def test_many_who_ask_share_one_load_and_one_worker(babbler: Path) -> None:
    async with pool_of(babbler) as pool:
        models = await asyncio.gather(*(pool.get_model("babbler") for _ in range(5)), pool.get_model(str(babbler)))
        assert len({id(model) for model in models}) == 1
        assert pool.get_loaded_models() == ["babbler"]
        assert pool.is_loaded("babbler")
        assert models[0].size_gb > 0
        assert models[0].loaded_at <= models[0].last_used
        before = models[0].last_used
        models[0].touch()
        assert models[0].last_used > before


async def test_model_waits_until_a_leased_one_can_make_room(babbler: Path, other: Path) -> None:
    async with pool_of(babbler, other, max_models=1) as pool:
        async with pool.lease("babbler") as leased:
            waiting = asyncio.create_task(pool.get_model("other"))
            while not pool.line.places.has_claim("other"):  # noqa: ASYNC110  the line has no event for it
                await asyncio.sleep(0.01)
            assert pool.state("other").status == "loading"
            assert len(await generate(leased)) == 5
        assert (await waiting).model_id == "other"
        assert pool.get_loaded_models() == ["other"]


async def test_wait_for_a_place_ends_after_half_of_the_time_of_a_request(babbler: Path, other: Path) -> None:
    async with pool_of(babbler, other, max_models=1, request_timeout_seconds=0.2) as pool, pool.lease("babbler"):
        with pytest.raises(InsufficientMemory, match=r"within 0\.1 s\. Models in use: babbler") as refused:
            await pool.get_model("other")
        assert refused.value.retry_after_seconds == 2
        while pool.state("other").status == "loading":  # noqa: ASYNC110  its load ends with the last that waited
            await asyncio.sleep(0)
        assert pool.state("other").status == "ready"


async def test_model_larger_than_the_budget_is_refused_with_the_numbers(babbler: Path) -> None:
    async with pool_of(babbler, max_memory_gb=0.0001) as pool:
        with pytest.raises(InsufficientMemory, match=r"0\.00 MB of 0\.10 MB"):
            await pool.get_model("babbler")


async def test_model_that_can_never_fit_evicts_nobody(babbler: Path, tmp_path: Path) -> None:
    huge = make_random_llama(tmp_path / "huge")
    weigh_down(huge, 9 * 2**30)
    async with pool_of(babbler, huge) as pool:
        await pool.get_model("babbler")
        with pytest.raises(InsufficientMemory, match="huge"):
            await pool.get_model("huge")
        assert pool.get_loaded_models() == ["babbler"]


async def test_failed_load_reaches_all_who_wait_and_the_next_call_tries_again(tmp_path: Path) -> None:
    folder = make_random_llama(tmp_path / "late")
    weights = (folder / "model.safetensors").rename(tmp_path / "aside")
    async with pool_of(folder) as pool:
        outcomes = await asyncio.gather(*(pool.get_model("late") for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ModelLoadFailed] * 3
        assert pool.state("late").status == "failed"
        weights.rename(folder / "model.safetensors")
        assert len(await generate(await pool.get_model("late"))) == 5
        assert pool.state("late").status == "ready"


async def test_broken_tokenizer_is_a_failed_load_and_leaves_no_worker(tmp_path: Path) -> None:
    folder = make_random_llama(tmp_path / "mute")
    (folder / "tokenizer.json").write_text("{")
    async with pool_of(folder) as pool:
        with pytest.raises(ModelLoadFailed, match="tokenizer"):
            await pool.get_model("mute")


async def test_dead_worker_fails_its_sequences_and_is_replaced(babbler: Path) -> None:
    async with pool_of(babbler) as pool:
        async with pool.lease("babbler") as model, model.engine.generate([ENDLESS]) as sequences:
            await anext(sequences)
            psutil.Process(model.engine.pid).kill()
            with pytest.raises(EngineFailed, match="SIGKILL"):
                [tokens async for tokens in sequences]
        async with pool.lease("babbler") as replaced:
            assert replaced.engine.pid != model.engine.pid
            assert len(await generate(replaced)) == 5


def test_request_to_a_worker_whose_death_nobody_has_noticed_yet_is_told_of_it(babbler: Path) -> None:
    """On uvloop, as in the server: it raises where asyncio's own loop lets the bytes go."""

    async def ask_the_dead() -> None:
        async with pool_of(babbler) as pool, pool.lease("babbler") as model:
            model.engine._worker.writer.transport.abort()  # as uvloop does when a write fails
            await asyncio.sleep(0)  # it is closed now, and the reader has not run
            with pytest.raises(EngineFailed):
                await generate(model)

    uvloop.run(ask_the_dead())


async def test_sequence_left_early_is_cancelled_in_the_worker(babbler: Path) -> None:
    async with pool_of(babbler) as pool, pool.lease("babbler") as model:
        async with model.engine.generate([ENDLESS]) as sequences:
            await anext(sequences)
        await asyncio.sleep(2 * HEARTBEAT_SECONDS)
        assert model.engine.stats.sequences == 0
        assert model.engine.stats.peak_bytes > 0
        assert len(await generate(model)) == 5


async def test_sequences_cancelled_at_any_moment_leave_no_task_and_nothing_in_the_worker(babbler: Path) -> None:
    async with pool_of(babbler) as pool:
        engine = (await pool.get_model("babbler")).engine

        async def generate_long() -> None:
            async with pool.lease("babbler") as model:
                await generate(model, max_tokens=4000)

        tasks_before = asyncio.all_tasks()
        running = [asyncio.create_task(generate_long()) for _ in range(60)]
        for task in running:
            await asyncio.sleep(0.005)
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        assert asyncio.all_tasks() == tasks_before
        await asyncio.sleep(2 * HEARTBEAT_SECONDS)
        assert engine.stats.sequences == 0


async def test_unloading_ends_the_worker(babbler: Path) -> None:
    async with pool_of(babbler) as pool:
        model = await pool.get_model("babbler")
        assert await pool.unload_model("babbler") is True
        assert not psutil.pid_exists(model.engine.pid)
        assert await pool.unload_model("babbler") is False


async def test_only_what_the_catalogue_names_is_loaded(babbler: Path) -> None:
    async with pool_of(babbler) as pool:
        for name in ("unknown", "../babbler", "/etc"):
            with pytest.raises(ModelNotFound):
                await pool.get_model(name)


async def test_pool_loads_nothing_after_cleanup(babbler: Path) -> None:
    async with pool_of(babbler) as pool:
        await pool.cleanup()
        with pytest.raises(NotReady):
            await pool.get_model("babbler")


async def test_two_models_asked_for_at_once_are_loaded_one_after_the_other_when_one_place_is_left(
    babbler: Path, other: Path
) -> None:
    async with pool_of(babbler, other, max_models=1) as pool:
        models = await asyncio.gather(pool.get_model("babbler"), pool.get_model("other"))
        assert [model.model_id for model in models] == ["babbler", "other"]
        assert len(pool.get_loaded_models()) == 1


async def test_adapter_that_raises_is_a_failed_load_and_leaves_no_worker(tmp_path: Path) -> None:
    class BrokenAdapter(DefaultAdapter):
        def get_stop_tokens(self, tokenizer: Tokenizer) -> list[int]:
            raise KeyError("staged")

    register_adapter("brokenfamily", BrokenAdapter())
    async with pool_of(make_random_llama(tmp_path / "brokenfamily-1b")) as pool:
        with pytest.raises(ModelLoadFailed, match="staged"):
            await pool.get_model("brokenfamily-1b")


def test_there_is_no_running_pool_outside_of_a_lifespan() -> None:
    with pytest.raises(NotReady, match="lifespan"):
        get_model_pool()


async def test_a_model_that_needs_a_prompt_for_its_tools_is_named_when_it_is_loaded(
    tmp_path: Path, babbler: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toolless = make_random_llama(tmp_path / "toolless")
    (toolless / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    caplog.set_level(logging.INFO)
    async with pool_of(toolless, babbler) as pool:
        await pool.get_model("babbler")
        assert "Tool calls" not in caplog.text
        assert "in a prompt" not in caplog.text
        await pool.get_model("toolless")
    assert "Model toolless gets its tools in a prompt: the chat template does not show tools" in caplog.text
