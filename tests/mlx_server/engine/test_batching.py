"""What the engine does with architectures that cannot be batched, or only in part."""

import logging

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import generate_step

from mlx_manager.mlx_server.engine.batching import Batching, try_batching
from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.messages import Step, Submit
from mlx_manager.mlx_server.types import SamplingParams
from tests.architectures.tiny_models import VOCABULARY, build

ONE_PROMPT_AT_A_TIME = Batching(prefills=False, decodes=True)
ONE_ROW_AT_A_TIME = Batching(prefills=False, decodes=False)
TOGETHER = Batching(prefills=True, decodes=True)

BATCHING = {
    "llama": TOGETHER,
    "qwen3_next": TOGETHER,
    "mixtral": TOGETHER,
    "gemma3_text": TOGETHER,
    "mamba2": TOGETHER,
    "nemotron_h": ONE_PROMPT_AT_A_TIME,
    "mamba": ONE_PROMPT_AT_A_TIME,
    "recurrent_gemma": ONE_PROMPT_AT_A_TIME,
    "baichuan_m1": ONE_PROMPT_AT_A_TIME,
    "gemma2": ONE_ROW_AT_A_TIME,
    "llama4": ONE_ROW_AT_A_TIME,
    "afm7": ONE_ROW_AT_A_TIME,
    "deepseek_v41": ONE_ROW_AT_A_TIME,
}


@pytest.mark.parametrize("name", BATCHING)
def test_batches_are_tried_at_load(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert try_batching(build(name), VOCABULARY) == BATCHING[name]
    assert bool(caplog.records) == (BATCHING[name] != TOGETHER)


@pytest.mark.parametrize("decay", ["as trained", "slow"])
def test_padding_that_leaks_is_seen_however_slowly_a_state_is_forgotten(decay: str) -> None:
    model = build("nemotron_h", long_memory=decay == "slow")
    assert try_batching(model, VOCABULARY) == ONE_PROMPT_AT_A_TIME


def test_rounding_at_16_bits_is_no_fault() -> None:
    """Products of other shapes are added up in another order, which the CPU does not do: noise stands for it."""
    model = Noisy(build("llama"), 0.05)
    assert try_batching(model, VOCABULARY) == TOGETHER


class Noisy(nn.Module):  # type: ignore[misc]
    def __init__(self, model: nn.Module, part: float) -> None:
        super().__init__()
        self.inner = model
        self.part = part
        mx.random.seed(3)

    @property
    def layers(self) -> list[nn.Module]:
        layers: list[nn.Module] = self.inner.layers
        return layers

    def __call__(self, tokens: mx.array, cache: list[object]) -> mx.array:
        logits: mx.array = self.inner(tokens, cache=cache)
        return logits + self.part * logits.std() * mx.random.normal(logits.shape)


@pytest.mark.parametrize("name", ["nemotron_h", "llama4", "deepseek_v41"])
def test_prompts_that_come_together_are_answered_as_alone(name: str) -> None:
    model = build(name)
    prompts = [[300 + 7 * n + i for i in range(length)] for n, length in enumerate((5, 21, 40))]
    expected = [[int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=6)] for prompt in prompts]
    core = EngineCore(model)
    for turn in range(2):  # the second time from the prefix cache
        for i, prompt in enumerate(prompts):
            core.submit(Submit(10 * turn + i, prompt, 6, [], SamplingParams(temperature=0, seed=0)))
        tokens: dict[int, list[int]] = {}
        while len(core):
            for event in core.step():
                for sequence, token in (
                    zip(event.sequences, event.tokens, strict=True) if isinstance(event, Step) else ()
                ):
                    tokens.setdefault(sequence - 10 * turn, []).append(token)
        assert [tokens[i] for i in range(3)] == expected
