"""The engine core, stepped by hand with no process around it."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.generator import load
from mlx_manager.mlx_server.engine.messages import (
    MAX_BATCH_ROWS,
    Admitted,
    RequestFailed,
    RequestFinished,
    Step,
    Submit,
)
from mlx_manager.mlx_server.engine.sampling import BatchSampler
from mlx_manager.mlx_server.types import SamplingParams

GREEDY = SamplingParams(temperature=0, seed=0)


@pytest.fixture(scope="module")
def model(babbler: Path) -> nn.Module:
    return load(babbler)


def submission(sequence: int, prompt: list[int], max_tokens: int = 8, sampling: SamplingParams = GREEDY) -> Submit:
    return Submit(sequence, prompt, max_tokens, [], sampling)


def run(core: EngineCore) -> dict[int, list[int]]:
    """Steps until nothing is left: the tokens of each sequence."""
    tokens: dict[int, list[int]] = {}
    while core.has_work:
        for event in core.step():
            if isinstance(event, Step):
                for sequence, token in zip(event.sequences, event.tokens, strict=True):
                    tokens.setdefault(sequence, []).append(token)
    return tokens


def test_sequence_is_admitted_stepped_and_finished_at_its_limit(model: nn.Module) -> None:
    core = EngineCore(model)
    core.submit(submission(7, [1, 2, 3], max_tokens=4))
    events = []
    while core.has_work:
        events += core.step()
    steps = [event for event in events if isinstance(event, Step)]
    assert events[0] == Admitted(7)
    assert [event.sequences for event in steps] == [[7]] * 4
    assert events[-1] == RequestFinished(7, "length")


def test_stop_token_ends_the_sequence_and_is_its_last_token(model: nn.Module) -> None:
    core = EngineCore(model)
    core.submit(submission(0, [1, 2, 3]))
    third = run(core)[0][2]
    core.submit(Submit(1, [1, 2, 3], 8, [third], GREEDY))
    events = []
    while core.has_work:
        events += core.step()
    last = [event for event in events if isinstance(event, Step)][-1]
    assert last.tokens == [third]
    assert events[-1] == RequestFinished(1, "stop")


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_company_does_not_change_a_sequence(model: nn.Module, temperature: float) -> None:
    prompts = [[5 * n + k for k in range(1, 2 + 3 * n)] for n in range(12)]
    submissions = [
        submission(n, prompt, 20 + n, SamplingParams(temperature=temperature, top_p=0.9, seed=n))
        for n, prompt in enumerate(prompts)
    ]
    alone: dict[int, list[int]] = {}
    for message in submissions:
        core = EngineCore(model)
        core.submit(message)
        alone |= run(core)
    together = EngineCore(model)
    for message in submissions:
        together.submit(message)
    assert run(together) == alone


def test_another_seed_draws_other_tokens(model: nn.Module) -> None:
    core = EngineCore(model)
    for seed in (1, 2, 1, -(2**63), 2**64 - 1):
        core.submit(submission(len(core), [3], 12, SamplingParams(seed=seed)))
    tokens = run(core)
    assert tokens[0] == tokens[2]
    assert len({tuple(row) for row in tokens.values()}) == 4


def test_cancel_in_queue_prefill_and_decode_leaves_the_others_alone(model: nn.Module) -> None:
    core = EngineCore(model)
    core.submit(submission(0, [1, 2], 12))
    expected = run(core)[0]
    core.submit(submission(0, [1, 2], 12))
    core.submit(submission(1, [3], 400))
    while not any(isinstance(event, Step) for event in core.step()):
        pass
    core.submit(submission(2, [4] * 6000, 400))
    received = [core.step() for _ in range(4)]
    core.submit(submission(3, [5], 400))
    for sequence in (3, 2, 1):
        core.cancel(sequence)
    assert len(core) == 1
    core.cancel(99)
    tokens = run(core)
    assert set(tokens) == {0}
    assert expected[-len(tokens[0]) :] == tokens[0]
    assert any(isinstance(event, Step) for events in received for event in events)


@pytest.mark.parametrize("prompt", [[], [-1], [1, 10**9]])
def test_prompt_that_mlx_would_crash_on_is_refused(model: nn.Module, prompt: list[int]) -> None:
    core = EngineCore(model)
    core.submit(submission(4, prompt))
    (refusal,) = core.step()
    assert isinstance(refusal, RequestFailed)
    assert refusal.sequence == 4
    assert len(core) == 0


def test_idle_core_gives_memory_back(model: nn.Module) -> None:
    core = EngineCore(model)
    for sequence in range(8):
        core.submit(submission(sequence, [sequence + 1] * 300, 30))
    before = mx.get_active_memory()
    run(core)
    core.release_memory()
    assert mx.get_active_memory() <= before + 1.15 * core.prefixes.nbytes
    assert mx.get_cache_memory() == 0


def test_weights_are_float32_on_the_cpu(model: nn.Module) -> None:
    assert model.layers[0].self_attn.q_proj.weight.dtype == mx.float32


VARIED = [
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0),
    SamplingParams(seed=3, temperature=0.7, top_k=5),
    SamplingParams(seed=4, min_p=0.2),
    SamplingParams(seed=5, temperature=0, repetition_penalty=1.8),
    SamplingParams(seed=6, temperature=0, frequency_penalty=1.5),
    SamplingParams(seed=7, temperature=0.9, presence_penalty=1.0, top_p=0.8),
    SamplingParams(seed=8, temperature=0, logit_bias={17: 4.0, 18: -100}),
]


def test_eight_different_requests_at_once_give_what_they_give_alone(model: nn.Module) -> None:
    submissions = [submission(n, [n + 1, 2, 3], 40, params) for n, params in enumerate(VARIED)]
    alone: dict[int, list[int]] = {}
    for message in submissions:
        core = EngineCore(model)
        core.submit(message)
        alone |= run(core)
    together = EngineCore(model)
    for message in submissions:
        together.submit(message)
    assert run(together) == alone


def test_long_prompt_and_an_endless_row_of_short_ones_do_not_hold_each_other_up(model: nn.Module) -> None:
    core = EngineCore(model)
    core.submit(submission(0, [1] * 3000, 2))
    order: list[int] = []
    while 0 not in order:
        while len(core) < 4:
            sequence = len(order) + len(core)
            core.submit(submission(sequence, [sequence % 1000 + 2] * 200, 2))
        for event in core.step():
            order += event.sequences if isinstance(event, Step) else []
        assert len(order) < 2000
    assert len(order) > 2


def test_more_sequences_than_the_batch_holds_all_get_their_turn(model: nn.Module) -> None:
    core = EngineCore(model)
    for sequence in range(MAX_BATCH_ROWS + 20):
        core.submit(submission(sequence, [sequence % 50 + 1], 3))
    tokens = run(core)
    assert {len(row) for row in tokens.values()} == {3}
    assert len(tokens) == MAX_BATCH_ROWS + 20


def test_prefill_that_waits_for_memory_does_not_slow_the_running_rows_down(model: nn.Module) -> None:
    core = EngineCore(model)
    core.submit(submission(0, [1] * 40, 60))
    while not any(isinstance(event, Step) for event in core.step()):
        pass
    core.limit(core.memory.needed(1, 200), 0)
    core.submit(submission(1, [2] * 40, 10))
    core.step()
    for _ in range(20):
        assert any(isinstance(event, Step) for event in core.step())
    assert {sequence: len(tokens) for sequence, tokens in run(core).items()}[1] == 10


@pytest.mark.parametrize("prefix_bytes", [2**28, 0])
def test_top_p_of_a_flat_distribution_draws_from_its_whole_nucleus(model: nn.Module, prefix_bytes: int) -> None:
    """The same tokens as from the sorted vocabulary, each of them once, whatever runs beside."""
    flat = [SamplingParams(seed=seed, temperature=3.0, top_p=0.95) for seed in range(3)]
    prompts = [[seed + 1, 2, 3] for seed in range(3)]
    core = EngineCore(model, prefix_bytes=prefix_bytes)
    for sequence, params in enumerate(flat):
        core.submit(submission(sequence, prompts[sequence], 12, params))
    core.submit(submission(9, [7, 8], 40))
    tokens = run(core)
    for sequence, params in enumerate(flat):
        assert tokens[sequence] == from_sorted_vocabulary(model, prompts[sequence], params, 12)
    assert len(tokens[9]) == 40
    assert len({token for row in flat for token in tokens[row.seed]}) > 20


def from_sorted_vocabulary(model: nn.Module, prompt: list[int], params: SamplingParams, count: int) -> list[int]:
    tokens = list(prompt)
    for drawn in range(count):
        logits = model(mx.array([tokens]))[:, -1]
        token: Any = BatchSampler([params])(logits, np.array([drawn], dtype=np.uint64)).tolist()
        tokens += token
    return tokens[len(prompt) :]
