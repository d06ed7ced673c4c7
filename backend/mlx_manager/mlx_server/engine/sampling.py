"""Samples tokens from logits, for all rows of a batch at once. Runs in the worker, on the engine's thread.

Order, as in vLLM and transformers: repetition penalty, frequency and presence penalties, logit bias (`make_processors`,
for the rows that have any), then temperature, top-k, top-p, min-p. Knows no requests.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_manager.mlx_server.types import SamplingParams

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
"""Maps the tokens of prompt and output so far (T,) and the logits (1, V) to logits (1, V)."""
MakeProcessors = Callable[[SamplingParams, int], list[LogitsProcessor]]
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
    temperature, min_p = _column(row.temperature for row in rows), _column(row.min_p for row in rows)
    has_min_p = any(row.min_p > 0 for row in rows)

    def draw(logits: mx.array, uniform: mx.array) -> tuple[mx.array, None]:
        weights = _weights(logits / temperature)
        if has_min_p:
            weights = mx.where(weights >= min_p, weights, 0)
        return _invert(weights, uniform), None

    return draw


def _draw_from_sorted(rows: list[SamplingParams]) -> _Draw:
    """Top-p, then min-p, on all tokens sorted by probability."""
    temperature, min_p = _column(row.temperature for row in rows), _column(row.min_p for row in rows)
    top_p = _column(max(row.top_p, MIN_TOP_P) for row in rows)

    def draw(logits: mx.array, uniform: mx.array) -> tuple[mx.array, None]:
        tokens = mx.argsort(-logits, axis=-1)
        weights = _weights(mx.take_along_axis(logits, tokens, axis=-1) / temperature)
        mass_above = mx.cumsum(weights, axis=-1) - weights
        is_nucleus = mass_above < top_p * weights.sum(axis=-1, keepdims=True)
        weights = mx.where(is_nucleus & (weights >= min_p), weights, 0)
        return mx.take_along_axis(tokens, _invert(weights, uniform)[:, None], axis=-1)[:, 0], None

    return draw


def _draw_from_top(rows: list[SamplingParams]) -> _Draw:
    """Top-k, then top-p of the remaining tokens, then min-p, on the most likely tokens in order."""
    temperature, min_p = _column(row.temperature for row in rows), _column(row.min_p for row in rows)
    top_p = _column(max(row.top_p, MIN_TOP_P) for row in rows)
    top_k = _column(row.top_k or MAX_NUCLEUS for row in rows)
    has_top_k = mx.array([[row.top_k > 0] for row in rows])
    all_have_top_k = all(row.top_k > 0 for row in rows)
    candidates = max(row.top_k or MAX_NUCLEUS for row in rows)

    def draw(logits: mx.array, uniform: mx.array) -> tuple[mx.array, mx.array | None]:
        scaled = logits / temperature
        tokens, values = top_logits(scaled, min(candidates, logits.shape[-1]))
        weights = mx.exp(values - values[:, :1])
        weights = mx.where(mx.arange(weights.shape[-1]) < top_k, weights, 0)
        held = whole = weights.sum(axis=-1, keepdims=True)
        short = None
        if not all_have_top_k:
            whole = mx.where(has_top_k, whole, _weights(scaled).sum(axis=-1, keepdims=True))
            if logits.shape[-1] > MAX_NUCLEUS:  # valid if min-p excludes the last candidate
                last = weights[:, MAX_NUCLEUS - 1 : MAX_NUCLEUS]
                short = (~has_top_k & (held < top_p * whole) & (last >= min_p))[:, 0]
        mass_above = mx.cumsum(weights, axis=-1) - weights
        weights = mx.where((mass_above < top_p * whole) & (weights >= min_p), weights, 0)
        return mx.take_along_axis(tokens, _invert(weights, uniform)[:, None], axis=-1)[:, 0], short

    return draw


def top_logits(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The ids (R, count) of the largest logits in descending order, and these logits."""
    tokens = None
    if count * BLOCK_TOKENS * 4 <= logits.shape[-1]:
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
    tokens = (chosen * BLOCK_TOKENS + mx.arange(BLOCK_TOKENS)).reshape(logits.shape[0], -1)
    tail = mx.broadcast_to(mx.arange(blocks * BLOCK_TOKENS, logits.shape[-1]), (logits.shape[0], rest))
    return mx.concatenate([tokens, tail.astype(tokens.dtype)], axis=-1)


def _weights(logits: mx.array) -> mx.array:
    """Probabilities relative to the largest one, which becomes 1."""
    return mx.exp(logits - logits.max(axis=-1, keepdims=True))


def _invert(weights: mx.array, uniform: mx.array) -> mx.array:
    """The position (R,) at which the cumulative weights (R, N) exceed the fraction `uniform` (R, 1) of their sum.

    The result always has a positive weight, although the sums of a parallel scan may rise elsewhere by rounding.
    """
    cumulative = mx.cumsum(weights, axis=-1)
    has_passed = cumulative > uniform * cumulative[:, -1:]
    return mx.argmax(mx.where(weights > 0, 1 + has_passed.astype(mx.uint8), 0), axis=-1)


def _column(values: Iterable[float]) -> mx.array:
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


class Guard:
    """Runs a row's processors and catches their exceptions, which would otherwise fail the whole batch.

    Keeps the first exception in `failure`; the engine then removes the row.
    """

    def __init__(self, processors: list[LogitsProcessor]) -> None:
        self.failure: Exception | None = None
        self._processors = processors

    def __bool__(self) -> bool:
        return bool(self._processors)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        try:
            for processor in self._processors:
                logits = processor(tokens, logits)
        except Exception as exc:
            self.failure = self.failure or exc
        return logits


def make_processors(params: SamplingParams, prompt_length: int) -> list[LogitsProcessor]:
    """The logits processors that a row needs before the draw; most rows need none."""
    processors: list[LogitsProcessor] = []
    if params.repetition_penalty != 1:
        processors.append(_repetition_penalty(params.repetition_penalty))
    if params.frequency_penalty != 0 or params.presence_penalty != 0:
        processors.append(_output_penalties(params.frequency_penalty, params.presence_penalty, prompt_length))
    if params.logit_bias:
        processors.append(_logit_bias(params.logit_bias))
    if params.min_tokens > 0 and params.end_tokens:
        processors.append(_min_tokens(params.min_tokens, params.end_tokens, prompt_length))
    return processors


def _repetition_penalty(penalty: float) -> LogitsProcessor:
    """Divides positive logits of tokens in prompt or output, and multiplies negative ones (arXiv:1909.05858)."""

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        seen = mx.zeros(logits.shape[-1], dtype=mx.bool_)
        seen[tokens] = True
        return mx.where(seen, mx.where(logits < 0, logits * penalty, logits / penalty), logits)

    return process


def _output_penalties(frequency: float, presence: float, prompt_length: int) -> LogitsProcessor:
    """OpenAI's penalties: subtracts `frequency` per occurrence of a token in the output, and `presence` once."""

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        counts = mx.zeros(logits.shape[-1]).at[tokens[prompt_length:]].add(1.0)
        return logits - (frequency * counts + presence * (counts > 0))

    return process


def _logit_bias(bias: dict[int, float]) -> LogitsProcessor:
    token_ids, values = mx.array(list(bias)), mx.array(list(bias.values()))

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, token_ids].add(values)

    return process


def _min_tokens(min_tokens: int, end_tokens: list[int], prompt_length: int) -> LogitsProcessor:
    ends = mx.array(end_tokens)

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        if tokens.shape[0] - prompt_length >= min_tokens:
            return logits
        return mx.put_along_axis(logits, ends[None], mx.array(-mx.inf, dtype=logits.dtype), axis=-1)

    return process
