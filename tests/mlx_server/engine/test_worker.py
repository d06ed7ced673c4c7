"""Worker processes: what they are started with, what ends them, and models that would."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.generator import load
from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.errors import EngineFailed, InvalidRequest
from tests.architectures.tiny_models import build, config_of
from tests.pools import GREEDY, generate, pool_of


async def test_frame_that_cannot_be_decoded_ends_the_worker_and_the_next_request_gets_another(babbler: Path) -> None:
    async with pool_of(babbler) as pool:
        async with (
            pool.lease("babbler") as model,
            model.engine.generate([Submit(0, [1, 2], 100_000, [], GREEDY)]) as sequences,
        ):
            await anext(sequences)
            model.engine._worker.writer.write(b"\x00\x00\x00\x03abc")
            with pytest.raises(EngineFailed, match="cannot read"):
                [tokens async for tokens in sequences]
        async with pool.lease("babbler") as model:
            assert len(await generate(model)) == 5


async def test_sequence_that_does_not_fit_into_memory_is_the_clients_fault(babbler: Path) -> None:
    async with pool_of(babbler) as pool, pool.lease("babbler") as model:
        with pytest.raises(InvalidRequest, match=r"needs \d+ tokens \(prompt 2 \+ completion \d+\)"):
            await generate(model, max_tokens=2**40)


def test_phi3small_with_a_small_vocabulary_masks_no_token_beyond_it(tmp_path: Path) -> None:
    """mlx-lm masks the ids that the first model of the family leaves out, up to 100,351."""
    config = config_of("phi3small")
    weights: dict[str, mx.array] = dict(tree_flatten(build("phi3small").parameters()))
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:4096]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 4096}))
    core = EngineCore(load(tmp_path))
    core.submit(Submit(0, [1, 2, 3], 3, [], GREEDY))
    while len(core):
        core.step()
    assert core.vocabulary_size == 4096
