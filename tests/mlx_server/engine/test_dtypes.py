"""Casting and dequantising weights changes what they take, and hardly what the model computes."""

import json
import logging
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_config, load_model, quantize_model, save_model

from mlx_manager.mlx_server.engine.dtypes import to_float16, warn_of_few_bits
from mlx_manager.mlx_server.engine.generator import load
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.models.catalog import Catalog
from mlx_manager.mlx_server.models.weights import weights_size
from tests.pools import generate, pool_over
from tests.small_models import make_random_model

GB = 2**30


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with weights of 4 bits and scales in bfloat16."""
    folder = make_random_model(tmp_path_factory.mktemp("models") / "quantized")
    model, _ = load_model(folder)
    model.set_dtype(mx.bfloat16)
    model, config = quantize_model(model, load_config(folder), group_size=32, bits=4)
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def dtypes(model: nn.Module) -> set[mx.Dtype]:
    return {weight.dtype for _, weight in tree_flatten(model.parameters())}


def logits(model: nn.Module) -> mx.array:
    computed: mx.array = model(mx.array([[1, 2, 3, 4]])).astype(mx.float32)
    return computed


def nbytes(model: nn.Module) -> int:
    return sum(weight.nbytes for _, weight in tree_flatten(model.parameters()))


def test_bfloat16_becomes_float16_and_packed_weights_stay(quantized: Path) -> None:
    model, _ = load_model(quantized)
    before = logits(model)
    assert dtypes(model) == {mx.bfloat16, mx.uint32}
    to_float16(model, "llama")
    assert dtypes(model) == {mx.float16, mx.uint32}
    assert mx.allclose(logits(model), before, atol=0.1)


def test_float32_stays_as_it_is(babbler: Path) -> None:
    model, _ = load_model(babbler)
    to_float16(model, "llama")
    assert dtypes(model) == {mx.float32}


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_families_that_overflow_float16_stay_in_bfloat16(
    quantized: Path, model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = load_model(quantized)
    with caplog.at_level(logging.WARNING):
        to_float16(model, model_type)
    assert dtypes(model) == {mx.bfloat16, mx.uint32}
    assert f"models of type {model_type} overflow float16" in caplog.text


def test_weight_that_float16_cannot_hold_keeps_the_model_in_bfloat16(
    quantized: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = load_model(quantized)
    model.model.norm.weight = mx.full(model.model.norm.weight.shape, -70_000.0, dtype=mx.bfloat16)
    with caplog.at_level(logging.WARNING):
        to_float16(model, "llama")
    assert dtypes(model) == {mx.bfloat16, mx.uint32}
    assert "model.norm.weight does not fit into float16" in caplog.text


def test_dequantized_model_computes_the_same_and_takes_what_was_reserved_for_it(quantized: Path) -> None:
    packed, whole = load(quantized), load(quantized, dequantize=True)
    assert dtypes(packed) == {mx.float32, mx.uint32}
    assert dtypes(whole) == {mx.float32}
    assert mx.allclose(logits(whole), logits(packed), atol=0.1)
    assert nbytes(whole) == pytest.approx(weights_size(quantized, dequantize=True).memory_bytes, rel=0.3)
    assert nbytes(packed) == weights_size(quantized).memory_bytes


def test_weights_of_few_bits_are_warned_of_with_the_remedy(quantized: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = load_model(quantized)
    with caplog.at_level(logging.WARNING):
        warn_of_few_bits(model, GB)
    assert "Weights of 4 bits decode slowly in a batch on CUDA. Set dequantize = true" in caplog.text


def test_warning_names_no_remedy_that_memory_does_not_allow(quantized: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = load_model(quantized)
    with caplog.at_level(logging.WARNING):
        warn_of_few_bits(model, nbytes(model))
    assert "when dequantised, and" in caplog.text
    assert "dequantize =" not in caplog.text


def test_model_with_whole_weights_is_not_warned_of(babbler: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = load_model(babbler)
    with caplog.at_level(logging.WARNING):
        warn_of_few_bits(model, GB)
    assert caplog.text == ""


async def test_entry_with_dequantize_loads_whole_weights_that_answer(quantized: Path) -> None:
    catalog = Catalog(str(quantized), [], models=[ModelSettings(id="whole", path=quantized, dequantize=True)])
    async with pool_over(catalog) as pool, pool.lease("quantized") as packed, pool.lease("whole") as whole:
        assert whole.weights_bytes > 3 * packed.weights_bytes
        assert len(await generate(whole)) == 5
