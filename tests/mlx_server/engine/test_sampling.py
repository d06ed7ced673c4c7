"""What each sampling parameter does to given logits."""

import math
from typing import Any

import mlx.core as mx
import pytest

from mlx_manager.mlx_server.engine.sampling import Sampler, make_drawing
from mlx_manager.mlx_server.types import SamplingParams

LOGITS = [3.0, 2.0, 1.0, 0.0, -1.0, -2.0]


def processed(params: SamplingParams, tokens: list[int], prompt_length: int) -> list[float]:
    logits = mx.array([LOGITS])
    for processor in make_drawing(params, prompt_length).processors:
        logits = processor(mx.array(tokens, dtype=mx.int32), logits)
    row: Any = logits[0].tolist()
    return [round(value, 4) for value in row]


def drawn(params: SamplingParams, times: int = 400) -> set[int]:
    sampler = make_drawing(params, 0).sampler
    logits = mx.array([LOGITS])
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return {draw(sampler, logprobs) for _ in range(times)}


def draw(sampler: Sampler, logprobs: mx.array) -> int:
    token: Any = sampler(logprobs).item()
    return int(token)


def test_defaults_change_no_logit() -> None:
    assert make_drawing(SamplingParams(seed=1), 3).processors == []


def test_repetition_penalty_counts_prompt_and_output_once_each() -> None:
    assert processed(SamplingParams(seed=1, repetition_penalty=2.0), [0, 4, 4], 1) == [1.5, 2.0, 1.0, 0.0, -2.0, -2.0]


def test_frequency_penalty_counts_each_time_in_the_output_and_not_the_prompt() -> None:
    assert processed(SamplingParams(seed=1, frequency_penalty=0.5), [0, 1, 1, 2], 1) == [3.0, 1.0, 0.5, 0.0, -1.0, -2.0]


def test_presence_penalty_counts_the_output_once() -> None:
    assert processed(SamplingParams(seed=1, presence_penalty=0.5), [0, 1, 1, 2], 1) == [3.0, 1.5, 0.5, 0.0, -1.0, -2.0]


def test_penalties_of_an_empty_output_change_nothing() -> None:
    assert processed(SamplingParams(seed=1, presence_penalty=2, frequency_penalty=2), [0, 1], 2) == LOGITS


def test_logit_bias_is_added() -> None:
    assert processed(SamplingParams(seed=1, logit_bias={5: 100, 0: -1.5}), [0], 1) == [1.5, 2.0, 1.0, 0.0, -1.0, 98.0]


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
    sampler = make_drawing(SamplingParams(seed=5), 0).sampler
    logprobs = mx.log(mx.array([[0.7, 0.2, 0.1]]))
    counts = [0, 0, 0]
    for _ in range(3000):
        counts[draw(sampler, logprobs)] += 1
    assert [round(count / 3000, 1) for count in counts] == [0.7, 0.2, 0.1]
