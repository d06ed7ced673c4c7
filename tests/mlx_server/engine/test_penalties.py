"""What penalties, logit bias and min_tokens do to given logits."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_manager.mlx_server.engine.penalties import Penalties
from mlx_manager.mlx_server.types import SamplingParams

LOGITS = [3.0, 2.0, 1.0, 0.0, -1.0, -2.0]
Row = tuple[SamplingParams, list[int], int]
"""A row's parameters, its tokens, and how many of them are output."""


def rounded(logits: mx.array) -> list[list[float]]:
    rows: Any = logits.astype(mx.float32).tolist()
    return [[round(value, 4) for value in row] for row in rows]


def joined(*rows: Row) -> Penalties:
    penalties = Penalties(len(LOGITS))
    penalties.join(*map(list, zip(*rows, strict=True)))
    return penalties


def penalised(*rows: Row, dtype: mx.Dtype = mx.float32) -> list[list[float]]:
    drawn = np.array([output for *_, output in rows], dtype=np.uint64)
    return rounded(joined(*rows)(mx.array([LOGITS] * len(rows), dtype=dtype), drawn))


def test_repetition_penalty_counts_prompt_and_output_once_each() -> None:
    assert penalised((SamplingParams(seed=1, repetition_penalty=2.0), [0, 4, 4], 2)) == [
        [1.5, 2.0, 1.0, 0.0, -2.0, -2.0]
    ]


def test_frequency_penalty_counts_each_time_in_the_output_and_not_the_prompt() -> None:
    assert penalised((SamplingParams(seed=1, frequency_penalty=0.5), [0, 1, 1, 2], 3)) == [
        [3.0, 1.0, 0.5, 0.0, -1.0, -2.0]
    ]


def test_presence_penalty_counts_the_output_once() -> None:
    assert penalised((SamplingParams(seed=1, presence_penalty=0.5), [0, 1, 1, 2], 3)) == [
        [3.0, 1.5, 0.5, 0.0, -1.0, -2.0]
    ]


def test_penalties_of_an_empty_output_change_nothing() -> None:
    assert penalised((SamplingParams(seed=1, presence_penalty=2, frequency_penalty=2), [0, 1], 0)) == [LOGITS]


def test_logit_bias_is_added() -> None:
    assert penalised((SamplingParams(seed=1, logit_bias={5: 100, 0: -1.5}), [0], 0)) == [
        [1.5, 2.0, 1.0, 0.0, -1.0, 98.0]
    ]


def test_token_ids_beyond_the_vocabulary_have_no_effect() -> None:
    params = SamplingParams(seed=1, logit_bias={6: 100, -1: 100, 10**9: 1}, min_tokens=9, end_tokens=[6, -1, 10**9])
    assert penalised((params, [0], 0)) == [LOGITS]


@pytest.mark.parametrize(("output", "may_end"), [(0, False), (1, False), (2, True)])
def test_min_tokens_forbids_the_end_tokens_until_that_many_are_drawn(output: int, may_end: bool) -> None:
    params = SamplingParams(seed=1, min_tokens=2, end_tokens=[1, 3])
    (row,) = penalised((params, [0, 2, 4], output))
    assert row == (LOGITS if may_end else [3.0, -np.inf, 1.0, -np.inf, -1.0, -2.0])


ROWS: list[Row] = [
    (SamplingParams(seed=1), [0, 1], 1),
    (SamplingParams(seed=1, repetition_penalty=1.3), [0, 4, 4], 1),
    (SamplingParams(seed=1, frequency_penalty=0.7, presence_penalty=-0.2), [0, 1, 1, 2], 3),
    (SamplingParams(seed=1, logit_bias={2: 1.5}, repetition_penalty=0.5, min_tokens=5, end_tokens=[0]), [2, 3], 1),
    (SamplingParams(seed=1, logit_bias={0: -4, 5: 4}), [5], 0),
]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_company_does_not_change_a_rows_logits(dtype: mx.Dtype) -> None:
    together = penalised(*ROWS, dtype=dtype)
    assert together == [penalised(row, dtype=dtype)[0] for row in ROWS]
    assert together[0] == LOGITS


def test_logits_before_the_penalties_stay_as_they_were() -> None:
    logits = mx.array([LOGITS] * len(ROWS))
    mx.eval(joined(*ROWS)(logits, np.ones(len(ROWS), dtype=np.uint64)))
    assert rounded(logits) == [LOGITS] * len(ROWS)


def test_drawn_tokens_count_as_output_while_rows_come_and_go() -> None:
    draws = [[5, 4, 3, 2, 1], [0, 0, 1, 1, 2]]
    penalties = joined(*ROWS)
    for tokens in draws:
        penalties.note(mx.array(tokens, dtype=mx.uint32))
    penalties.keep([0, 1, 3])
    late: Row = (SamplingParams(seed=1, presence_penalty=1.0), [3, 3], 1)
    penalties.join([late[0]], [late[1]], [late[2]])
    penalties.keep([3, 1, 2])
    penalties.note(mx.array([0, 1, 1], dtype=mx.uint32))
    now: list[Row] = [
        (late[0], [*late[1], 0], late[2] + 1),
        (ROWS[1][0], [*ROWS[1][1], 4, 0, 1], ROWS[1][2] + 3),
        (ROWS[3][0], [*ROWS[3][1], 2, 1, 1], ROWS[3][2] + 3),
    ]
    drawn = np.array([output for *_, output in now], dtype=np.uint64)
    assert rounded(penalties(mx.array([LOGITS] * 3), drawn)) == penalised(*now)


def test_batch_without_penalties_computes_nothing() -> None:
    logits = mx.array([LOGITS])
    penalties = joined((SamplingParams(seed=1), [1, 2], 1))
    assert penalties(logits, np.ones(1, dtype=np.uint64)) is logits
    assert penalties.arrays == []
