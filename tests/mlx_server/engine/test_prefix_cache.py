"""Prompts that begin alike: what is reused changes no token, and the ledger is what MLX holds."""

import gc
import importlib
import random
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.messages import Admitted, Prefilled, Step, Submit
from mlx_manager.mlx_server.types import SamplingParams

VOCABULARY = 300
END = 7
"""The stop token, which ends the messages of a chat."""

SMALL: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2, "num_attention_heads": 4},
    "sliding window": {
        "model_type": "gemma3_text",
        "num_key_value_heads": 1,
        "num_attention_heads": 4,
        "head_dim": 16,
        "sliding_window": 24,
        "sliding_window_pattern": 2,
    },
    "recurrent": {
        "model_type": "lfm2",
        "num_key_value_heads": 2,
        "num_attention_heads": 4,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 128,
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1],
    },
}


def make_model(kind: str) -> nn.Module:
    config = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        **SMALL[kind],
    }
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="module", params=list(SMALL))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make_model(request.param)


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return make_model("llama")


def core_of(model: nn.Module, prefix_bytes: int = 2**28, **limits: Any) -> EngineCore:
    return EngineCore(model, prefix_bytes=prefix_bytes, **limits)


def ask(core: EngineCore, *prompts: list[int], max_tokens: int = 6, seed: int = 1) -> list[tuple[list[int], int]]:
    """All prompts at once: the tokens of each answer, and how many of its prompt were cached."""
    sampling = SamplingParams(seed=seed, temperature=0.8)
    for sequence, prompt in enumerate(prompts):
        core.submit(Submit(sequence, prompt, max_tokens, [END], sampling))
    answers: list[list[int]] = [[] for _ in prompts]
    cached = [0] * len(prompts)
    while core.has_work:
        for event in core.step():
            if isinstance(event, Step):
                for sequence, token in zip(event.sequences, event.tokens, strict=True):
                    answers[sequence].append(token)
            elif isinstance(event, Prefilled):
                cached[event.sequence] = event.cached_tokens
    return list(zip(answers, cached, strict=True))


def message(seed: int, length: int) -> list[int]:
    """Tokens of one chat message, with the stop token at its end."""
    return [*random.Random(seed).choices(range(10, VOCABULARY), k=length - 1), END]


SYSTEM = message(0, 120)
FIRST, SECOND = message(1, 30), message(2, 40)


def test_reuse_changes_no_token(model: nn.Module) -> None:
    core, fresh = core_of(model), core_of(model, prefix_bytes=0)
    answer = ask(core, SYSTEM + FIRST)[0][0]
    conversation = SYSTEM + FIRST + answer + SECOND
    prompts = {
        "another question to the same system prompt": SYSTEM + SECOND,
        "the same again": SYSTEM + FIRST,
        "a growing conversation": conversation,
        "an edited turn": SYSTEM + message(3, 30) + answer + SECOND,
        "the first again": SYSTEM + FIRST,
    }
    for name, prompt in prompts.items():
        ((tokens, cached),) = ask(core, prompt)
        assert tokens == ask(fresh, prompt)[0][0], name
        assert len(SYSTEM) <= cached < len(prompt), name
    assert fresh.prefixes.hits == fresh.prefixes.nbytes == 0


def test_llama_reuses_every_token_it_has_seen(llama: nn.Module) -> None:
    core = core_of(llama)
    answer = ask(core, SYSTEM + FIRST)[0][0]
    assert ask(core, SYSTEM + FIRST)[0][1] == len(SYSTEM + FIRST) - 1
    assert ask(core, SYSTEM + FIRST + answer + SECOND)[0][1] == len(SYSTEM + FIRST + answer)
    assert ask(core, SYSTEM[:50] + SECOND)[0][1] == 50


def test_conversations_in_alternation_are_all_kept(llama: nn.Module) -> None:
    core = core_of(llama)
    conversations = [message(n, 100) for n in range(6)]
    for turn in range(3):
        for n, conversation in enumerate(conversations):
            ((answer, cached),) = ask(core, conversation)
            assert cached == (0 if turn == 0 else len(conversation) - 10)
            conversations[n] = conversation + answer + message(100 * n + turn, 10)


def test_prompts_at_once_with_one_cold_prefix_take_it_in_once(model: nn.Module) -> None:
    prompts = [SYSTEM + message(n, 20) for n in range(1, 9)]
    core = core_of(model)
    together = ask(core, *prompts)
    assert [cached for _, cached in together] == [0] + [len(SYSTEM)] * 7
    fresh = core_of(model, prefix_bytes=0)
    assert [tokens for tokens, _ in together] == [ask(fresh, prompt)[0][0] for prompt in prompts]


@pytest.fixture
def exact_allocations() -> Iterator[None]:
    """MLX keeps no freed buffers: a reused one may be larger than its array."""
    before = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(before)


@pytest.mark.usefixtures("exact_allocations")
def test_ledger_is_what_mlx_holds_and_keeps_to_its_budget(model: nn.Module) -> None:
    budget = 3_000_000
    core = core_of(model, prefix_bytes=budget, inter_token_seconds=1e9)  # chunks of one size on any machine
    gc.collect()  # what other tests left behind
    empty = mx.get_active_memory()
    for round_ in range(3):
        ask(core, *(SYSTEM + message(10 * round_ + n, 900) for n in range(10)), max_tokens=20)
        mx.synchronize()
        assert budget / 2 < core.prefixes.nbytes <= budget
        assert 0 <= mx.get_active_memory() - empty - core.prefixes.nbytes <= 0.02 * core.prefixes.nbytes
    assert core.prefixes.evictions > 0
    core.prefixes.shrink(0)
    core.step()
    assert core.prefixes.nbytes == 0
    assert mx.get_active_memory() - empty <= 4096


def test_what_was_not_used_for_longest_goes_first(llama: nn.Module) -> None:
    core = core_of(llama)
    prompts = [message(n, 100) for n in range(4)]
    for prompt in prompts:
        ask(core, prompt)
    ask(core, prompts[0])
    core.prefixes.shrink(core.prefixes.nbytes - 1)
    assert [core.prefixes.match(prompt).length > 0 for prompt in prompts] == [True, False, True, True]


def test_prefix_larger_than_the_budget_evicts_nothing(llama: nn.Module) -> None:
    core = core_of(llama, prefix_bytes=250_000)
    ask(core, SYSTEM)
    ask(core, message(5, 2000))
    assert ask(core, SYSTEM)[0][1] == len(SYSTEM) - 1


def test_cancelled_prompt_is_kept_as_far_as_it_was_taken_in(llama: nn.Module) -> None:
    core = core_of(llama)
    prompt = message(9, 3000)
    core.submit(Submit(0, prompt, 5, [], SamplingParams(seed=0)))
    assert core.step() == [Admitted(0)]
    core.step()
    core.cancel(0)
    assert 0 < ask(core, prompt)[0][1] < len(prompt) - 1


def test_rows_that_outgrow_memory_begin_again_later_and_give_what_they_give_alone(llama: nn.Module) -> None:
    prompts = [message(n, 200) for n in range(8)]
    fresh = core_of(llama, prefix_bytes=0)
    expected = [ask(fresh, prompt, max_tokens=200)[0][0] for prompt in prompts]
    core = core_of(llama, kv_bytes=fresh.memory.needed(8, 256))
    for sequence, prompt in enumerate(prompts):
        core.submit(Submit(sequence, prompt, 200, [END], SamplingParams(seed=1, temperature=0.8)))
    answers: list[list[int]] = [[] for _ in prompts]
    most_rows = {256: 0, 512: 0}
    while core.has_work:
        for event in core.step():
            if isinstance(event, Step):
                for sequence, token in zip(event.sequences, event.tokens, strict=True):
                    answers[sequence].append(token)
                longest = 200 + max(len(answers[sequence]) for sequence in event.sequences)
                size = 256 if longest <= 256 else 512
                most_rows[size] = max(most_rows[size], len(event.sequences))
        assert core.prefixes.nbytes <= core.memory.limit_bytes
    assert answers == expected
    assert most_rows == {256: 8, 512: 4}


def test_stored_prefixes_go_before_a_prompt_comes_in_that_needs_their_memory(llama: nn.Module) -> None:
    limit = core_of(llama).memory.needed(1, 2048)
    core = core_of(llama, prefix_bytes=limit, kv_bytes=limit)
    for n in range(8):
        ask(core, message(n, 100))
    assert core.prefixes.nbytes > 0
    core.submit(Submit(0, message(9, 2000), 5, [], SamplingParams(seed=0)))
    assert core.step() == [Admitted(0)]
    core.step()
    assert core.prefixes.nbytes == 0


def test_sequence_that_could_never_fit_is_refused(llama: nn.Module) -> None:
    core = core_of(llama, kv_bytes=2**20)
    most = core.memory.largest_sequence_tokens
    assert most > 0
    core.submit(Submit(0, [1] * most, 1, [], SamplingParams(seed=0)))
    assert "memory" in core.step()[0].message  # type: ignore[union-attr]
