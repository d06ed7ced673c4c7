"""Samples tokens from logits, for all rows of a batch at once. Runs in the worker, on the engine's thread.

Order, as in vLLM and transformers: after `penalties.py`, temperature, top-k, top-p, min-p. Knows no requests.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_manager.mlx_server.types import SamplingParams

Integers = np.ndarray[Any, np.dtype[np.uint64]]

MIN_TEMPERATURE = 1e-5
"""Smaller temperatures overflow float32 and are treated as greedy."""
MIN_TOP_P = 1e-6
MAX_NUCLEUS = 1024
"""Quick top-p draws look for the nucleus among this many of the most likely tokens, which needs no sort of the whole
vocabulary."""

BLOCK_TOKENS = 16

_Draw = Callable[[mx.array, mx.array], tuple[mx.array, mx.array | None]]
"""Maps logits (R, V) and one uniform number for each row (R, 1) to token ids (R,) and, for quick draws, to whether each
row's draw is invalid (R,)."""


compiled = functools.partial(mx.compile, shapeless=True)
"""Fuses the operations of a function once for all shapes, on a GPU: a worker on the CPU disables it.

The function may not slice or reshape, and its first call must broadcast the same dimensions as all others.
"""


class BatchSampler:
    """Draws a token for every row, each with its own parameters and random stream.

    A draw inverts the cumulative distribution at one random number, a function of the row's seed and its count of drawn
    tokens. So a seed gives the same tokens in every batch.

    Top-p without top-k sorts the whole vocabulary, except for `quick` rows: these draw among the MAX_NUCLEUS most
    likely tokens. After the draw, `short` marks the rows whose nucleus is larger; their draws are invalid.
    """

    def __init__(self, rows: list[SamplingParams], quick: Sequence[bool] = ()) -> None:
        self.short: mx.array | None = None
        """(R,) for the last draw, of the rows `short_rows`."""
        self.short_rows: list[int] = []
        self._streams = _mix(np.array([params.seed % 2**64 for params in rows], dtype=np.uint64))
        kinds: dict[Callable[[list[SamplingParams]], _Draw], list[int]] = {}
        for i, params in enumerate(rows):
            kinds.setdefault(_kind(params, bool(quick) and quick[i]), []).append(i)
        self.short_rows = kinds.get(_draw_from_top, [])
        self._is_greedy = list(kinds) == [_greedy]
        self._draws = [(make([rows[i] for i in indices]), mx.array(indices)) for make, indices in kinds.items()]
        order = [i for indices in kinds.values() for i in indices]
        self._place = mx.array(np.argsort(order)) if order else None

    def __call__(self, logits: mx.array, drawn: Integers) -> mx.array:
        """Token ids (B,) from logits (B, V); `drawn` (B,) counts the tokens that each row has drawn so far."""
        if self._is_greedy:
            return mx.argmax(logits, axis=-1)
        logits = logits.astype(mx.float32)  # half precision is too coarse for sums over a vocabulary
        uniform = mx.array(_uniform(self._streams, drawn))[:, None]
        if len(self._draws) == 1:
            tokens, self.short = self._draws[0][0](logits, uniform)
            return tokens
        parts = [draw(logits[rows], uniform[rows]) for draw, rows in self._draws]
        self.short = next((short for _, short in parts if short is not None), None)
        return mx.concatenate([tokens for tokens, _ in parts])[self._place]


def _kind(params: SamplingParams, quick: bool) -> Callable[[list[SamplingParams]], _Draw]:
    if params.temperature < MIN_TEMPERATURE:
        return _greedy
    if params.top_k > 0 or (params.top_p < 1 and quick):
        return _draw_from_top
    return _draw_from_all if params.top_p >= 1 else _draw_from_sorted


def _greedy(rows: list[SamplingParams]) -> _Draw:
    return lambda logits, uniform: (mx.argmax(logits, axis=-1), None)


def _draw_from_all(rows: list[SamplingParams]) -> _Draw:
    temperature, min_p = column(row.temperature for row in rows), column(row.min_p for row in rows)
    if any(row.min_p > 0 for row in rows):
        return lambda logits, uniform: (_from_all_with_min_p(logits, uniform, temperature, min_p), None)
    return lambda logits, uniform: (_from_all(logits, uniform, temperature), None)


def _draw_from_sorted(rows: list[SamplingParams]) -> _Draw:
    """Top-p, then min-p, on all tokens sorted by probability."""
    temperature, min_p = column(row.temperature for row in rows), column(row.min_p for row in rows)
    top_p = column(max(row.top_p, MIN_TOP_P) for row in rows)
    return lambda logits, uniform: (_from_sorted(logits, uniform, temperature, top_p, min_p), None)


def _draw_from_top(rows: list[SamplingParams]) -> _Draw:
    """Top-k, then top-p of the remaining tokens, then min-p, on the most likely tokens in order."""
    temperature, min_p = column(row.temperature for row in rows), column(row.min_p for row in rows)
    top_p = column(max(row.top_p, MIN_TOP_P) for row in rows)
    has_top_k = mx.array([[row.top_k > 0] for row in rows])
    all_have_top_k = all(row.top_k > 0 for row in rows)
    candidates = max(2, *(row.top_k or MAX_NUCLEUS for row in rows))  # one alone would broadcast when compiled
    within = mx.arange(candidates) < mx.array([[row.top_k or MAX_NUCLEUS] for row in rows])

    def draw(logits: mx.array, uniform: mx.array) -> tuple[mx.array, mx.array | None]:
        count = min(candidates, logits.shape[-1])
        tokens, values = top_logits(logits, count)
        weights = _weights_of_top(values, values[:, :1], within[:, :count], temperature)
        held = whole = weights.sum(axis=-1, keepdims=True)
        short = None
        if not all_have_top_k:
            whole = mx.where(has_top_k, whole, _total(logits, temperature))
            if logits.shape[-1] > MAX_NUCLEUS:  # valid if min-p excludes the last candidate
                last = weights[:, MAX_NUCLEUS - 1 : MAX_NUCLEUS]
                short = (~has_top_k & (held < top_p * whole) & (last >= min_p))[:, 0]
        return _from_nucleus(tokens, weights, uniform, top_p * whole, min_p), short

    return draw


@compiled
def _from_all(logits: mx.array, uniform: mx.array, temperature: mx.array) -> mx.array:
    return _invert(_weights(logits, temperature), uniform)


@compiled
def _from_all_with_min_p(logits: mx.array, uniform: mx.array, temperature: mx.array, min_p: mx.array) -> mx.array:
    weights = _weights(logits, temperature)
    return _invert(mx.where(weights >= min_p, weights, 0), uniform)


@compiled
def _from_sorted(
    logits: mx.array, uniform: mx.array, temperature: mx.array, top_p: mx.array, min_p: mx.array
) -> mx.array:
    tokens = mx.argsort(-logits, axis=-1)
    weights = _weights(mx.take_along_axis(logits, tokens, axis=-1), temperature)
    return _from_nucleus(tokens, weights, uniform, top_p * weights.sum(axis=-1, keepdims=True), min_p)


@compiled
def _from_nucleus(tokens: mx.array, weights: mx.array, uniform: mx.array, mass: mx.array, min_p: mx.array) -> mx.array:
    """Draws from the most likely of `tokens` (R, N), in descending order, that hold `mass` (R, 1) of the weights."""
    mass_above = mx.cumsum(weights, axis=-1) - weights
    weights = mx.where((mass_above < mass) & (weights >= min_p), weights, 0)
    return mx.take_along_axis(tokens, _invert(weights, uniform)[:, None], axis=-1)[:, 0]


@compiled
def _weights_of_top(values: mx.array, largest: mx.array, within: mx.array, temperature: mx.array) -> mx.array:
    return mx.where(within, mx.exp((values - largest) / temperature), 0)


@compiled
def _total(logits: mx.array, temperature: mx.array) -> mx.array:
    return _weights(logits, temperature).sum(axis=-1, keepdims=True)


def top_logits(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The ids (R, count) of the largest logits in descending order, and these logits."""
    tokens = None
    if count * BLOCK_TOKENS * 8 <= logits.shape[-1]:
        tokens = _top_blocks(logits, count)
        logits = mx.take_along_axis(logits, tokens, axis=-1)
    places = mx.argpartition(-logits, kth=count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logits, places, axis=-1)
    order = mx.argsort(-values, axis=-1)
    places = mx.take_along_axis(places, order, axis=-1)
    ordered = mx.take_along_axis(values, order, axis=-1)
    return (places if tokens is None else mx.take_along_axis(tokens, places, axis=-1)), ordered


def _top_blocks(logits: mx.array, count: int) -> mx.array:
    """Ids (R, count * BLOCK_TOKENS + rest) that contain the `count` largest logits: the blocks with the largest maxima.

    At most `count` blocks contain one of these logits, and no other block has a larger maximum.
    """
    blocks = logits.shape[-1] // BLOCK_TOKENS
    rest = logits.shape[-1] - blocks * BLOCK_TOKENS
    whole = logits[:, : blocks * BLOCK_TOKENS].reshape(-1, blocks, BLOCK_TOKENS)
    chosen = mx.argpartition(-whole.max(axis=-1), kth=count - 1, axis=-1)[:, :count, None]
    tokens = (chosen * BLOCK_TOKENS + mx.arange(BLOCK_TOKENS, dtype=mx.uint32)).reshape(logits.shape[0], -1)
    if not rest:
        return tokens
    tail = mx.broadcast_to(mx.arange(blocks * BLOCK_TOKENS, logits.shape[-1]), (logits.shape[0], rest))
    return mx.concatenate([tokens, tail.astype(tokens.dtype)], axis=-1)


def _weights(logits: mx.array, temperature: mx.array) -> mx.array:
    """Probabilities relative to the largest one, which becomes 1."""
    return mx.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)


def _invert(weights: mx.array, uniform: mx.array) -> mx.array:
    """The position (R,) at which the cumulative weights (R, N) exceed the fraction `uniform` (R, 1) of their sum.

    The result always has a positive weight, although the sums of a parallel scan may rise elsewhere by rounding.
    """
    cumulative = mx.cumsum(weights, axis=-1)
    has_passed = cumulative > uniform * cumulative.max(axis=-1, keepdims=True)
    return mx.argmax(mx.where(weights > 0, 1 + has_passed.astype(mx.uint8), 0), axis=-1)


def column(values: Iterable[float]) -> mx.array:
    """(R, 1)"""
    return mx.array(list(values), dtype=mx.float32)[:, None]


def _uniform(streams: Integers, drawn: Integers) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Numbers in [0, 1) of 23 bits, which cannot round up to 1: SplitMix64 at position `drawn` of each stream."""
    bits = _mix(streams + (drawn + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return ((bits >> np.uint64(41)) * 2.0**-23).astype(np.float32)


def _mix(values: Integers) -> Integers:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
