"""What each sampling parameter does to given logits."""

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_manager.mlx_server.engine.sampling import MAX_NUCLEUS, BatchSampler
from mlx_manager.mlx_server.types import SamplingParams

LOGITS = [3.0, 2.0, 1.0, 0.0, -1.0, -2.0]


def draws(params: SamplingParams, logits: list[float], times: int) -> list[int]:
    """What `times` draws in a row of one sequence give."""
    sampler = BatchSampler([params])
    rows = mx.array([logits])
    return [token for i in range(times) for token in tokens_of(sampler(rows, np.array([i], dtype=np.uint64)))]


def tokens_of(drawn: mx.array) -> list[int]:
    tokens: Any = drawn.tolist()
    return list(tokens)


def drawn(params: SamplingParams, times: int = 400) -> set[int]:
    return set(draws(params, LOGITS, times))


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-46, 1e-45, 1e-6])
def test_temperature_of_next_to_nothing_is_greedy(temperature: float) -> None:
    assert drawn(SamplingParams(seed=1, temperature=temperature), times=3) == {0}


@pytest.mark.parametrize("top_p", [1e-300, 1e-46, 1e-6])
def test_top_p_of_next_to_nothing_is_greedy(top_p: float) -> None:
    assert drawn(SamplingParams(seed=1, top_p=top_p), times=20) == {0}


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_top_k_draws_from_the_k_likeliest(top_k: int) -> None:
    assert drawn(SamplingParams(seed=1, temperature=2, top_k=top_k)) == set(range(top_k))


def test_top_p_draws_from_the_smallest_set_that_reaches_it() -> None:
    total = sum(map(math.exp, LOGITS))
    first_two = sum(map(math.exp, LOGITS[:2])) / total
    assert drawn(SamplingParams(seed=1, top_p=first_two - 0.01)) == {0, 1}
    assert drawn(SamplingParams(seed=1, top_p=first_two + 0.01)) == {0, 1, 2}


def test_min_p_is_relative_to_the_likeliest() -> None:
    assert drawn(SamplingParams(seed=1, min_p=math.exp(-1.5))) == {0, 1}


def test_temperature_comes_before_the_filters() -> None:
    assert drawn(SamplingParams(seed=1, temperature=2, min_p=math.exp(-1.1))) == {0, 1, 2}


def test_draws_follow_the_distribution() -> None:
    probabilities = [0.7, 0.2, 0.1]
    for params in (SamplingParams(seed=5), SamplingParams(seed=5, top_k=3), SamplingParams(seed=5, top_p=0.999)):
        tokens = draws(params, [math.log(p) for p in probabilities], 3000)
        assert [round(tokens.count(token) / 3000, 1) for token in range(3)] == probabilities


def test_a_row_draws_the_same_whatever_its_neighbours_ask_for() -> None:
    rows = [
        SamplingParams(seed=1),
        SamplingParams(seed=2, temperature=0),
        SamplingParams(seed=3, top_k=3),
        SamplingParams(seed=4, top_p=0.5),
        SamplingParams(seed=5, min_p=0.1),
        SamplingParams(seed=6, temperature=1.7, top_k=2000, top_p=0.9, min_p=0.01),
        SamplingParams(seed=7, temperature=0.3),
    ]
    logits = 2 * mx.random.normal((len(rows), 3000), key=mx.random.key(0))
    for drawn_before in range(20):
        counts = np.full(len(rows), drawn_before, dtype=np.uint64)
        together = tokens_of(BatchSampler(rows)(logits, counts))
        alone = [tokens_of(BatchSampler([row])(logits[i : i + 1], counts[:1]))[0] for i, row in enumerate(rows)]
        assert together == alone


def nucleus(logits: mx.array, params: SamplingParams) -> set[int]:
    """By numpy, in float64: the fewest of the likeliest tokens that hold top-p, and what min-p leaves of them."""
    scaled = np.array(logits, dtype=np.float64) / params.temperature
    order = np.argsort(-scaled)
    weights = np.exp(scaled[order] - scaled.max())
    mass_above = np.cumsum(weights) - weights
    return set(order[(mass_above < params.top_p * weights.sum()) & (weights >= params.min_p)].tolist())


FLAT = mx.random.normal((20_000,), key=mx.random.key(1))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=1, top_p=0.95, temperature=2),
        SamplingParams(seed=2, top_p=0.5),
        SamplingParams(seed=3, top_p=0.9, min_p=0.05),
    ],
)
def test_top_p_draws_from_the_whole_nucleus_of_flat_logits(params: SamplingParams) -> None:
    expected = nucleus(FLAT, params)
    assert len(expected) > 2 * MAX_NUCLEUS
    rows = mx.broadcast_to(FLAT, (64, FLAT.size))
    sampler = BatchSampler([params] * 64)
    tokens = [
        token for i in range(16) for token in tokens_of(sampler(rows, np.arange(64 * i, 64 * i + 64, dtype=np.uint64)))
    ]
    assert set(tokens) <= expected
    likeliest_tokens = set(np.argsort(-np.array(FLAT))[:MAX_NUCLEUS].tolist())
    weights = np.exp(np.array(FLAT, dtype=np.float64) / params.temperature)
    share = weights[list(likeliest_tokens)].sum() / weights[list(expected)].sum()
    assert sum(token in likeliest_tokens for token in tokens) / len(tokens) == pytest.approx(share, abs=0.06)


def test_quick_draw_says_where_the_likeliest_tokens_fall_short() -> None:
    rows = [
        SamplingParams(seed=1, top_p=0.9),
        SamplingParams(seed=2, top_p=0.9),
        SamplingParams(seed=3, top_p=0.9, top_k=2000),
        SamplingParams(seed=4, top_p=0.9, min_p=0.5),
        SamplingParams(seed=5),
    ]
    steep = -0.05 * mx.arange(FLAT.size)
    sampler = BatchSampler(rows, quick=[True] * len(rows))
    quickly = tokens_of(sampler(mx.stack([FLAT, steep, FLAT, FLAT, FLAT]), np.zeros(len(rows), dtype=np.uint64)))
    assert sampler.short_rows == [0, 1, 2, 3]
    assert sampler.short is not None
    assert sampler.short.tolist() == [True, False, False, False]
    exactly = tokens_of(BatchSampler(rows)(mx.stack([FLAT, steep, FLAT, FLAT, FLAT]), np.zeros(5, dtype=np.uint64)))
    assert quickly[1:] == exactly[1:]


def test_token_without_a_weight_is_never_drawn() -> None:
    """A parallel scan adds up in blocks, so that its sums need not rise from one token to the next."""
    logits = mx.where(mx.arange(50_000) % 1000 == 7, 0.0, -mx.inf)
    for params in (SamplingParams(seed=1), SamplingParams(seed=1, top_p=0.99), SamplingParams(seed=1, min_p=0.5)):
        sampler = BatchSampler([params])
        tokens = [
            token for i in range(300) for token in tokens_of(sampler(logits[None], np.array([i], dtype=np.uint64)))
        ]
        assert {token % 1000 for token in tokens} == {7}


def test_another_seed_or_place_in_the_stream_draws_another_token() -> None:
    flat = [0.0] * 1000
    streams = [tuple(draws(SamplingParams(seed=seed), flat, 5)) for seed in (0, 1, 2, -1, 2**63)]
    assert len(set(streams)) == 5
    assert len(set(streams[0])) > 1
