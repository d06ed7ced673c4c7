"""Drawing tokens from logits. Runs in the worker, on the engine's thread; knows rows of numbers, and no requests.

The order is that of vLLM and transformers: repetition penalty, frequency and presence penalties, logit bias, then
temperature, top-k, top-p and min-p on what is left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from mlx_manager.mlx_server.types import SamplingParams

MIN_TEMPERATURE = 1e-5
"""Below it a division overflows float32, and a draw is greedy but for ties."""
MIN_TOP_P = 1e-6

Sampler = Callable[[mx.array], mx.array]
"""Maps logprobs (B, V) to token ids (B,)."""
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
"""Maps a sequence's tokens so far (T,), its prompt first, and its logits (1, V) to logits (1, V)."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How one sequence draws its tokens: the processors in their order, then the sampler."""

    sampler: Sampler
    processors: list[LogitsProcessor]


MakeDrawing = Callable[[SamplingParams, int], Drawing]


def make_drawing(params: SamplingParams, prompt_length: int) -> Drawing:
    """Greedy sequences share one sampler, which mlx-lm then calls once for all of them."""
    sampler = greedy if params.temperature < MIN_TEMPERATURE else _SeededSampler(params)
    return Drawing(sampler, _make_processors(params, prompt_length))


class Guard:
    """A drawing that cannot raise: in mlx-lm's batch an exception would take the neighbours with it.

    The first exception is kept in `failure`, and the sequence goes on greedily until the engine removes it.
    """

    def __init__(self, drawing: Drawing) -> None:
        self.failure: Exception | None = None
        self.sampler = drawing.sampler if drawing.sampler is greedy else self._guarded_sampler(drawing.sampler)
        self.processors = [self._guarded_processor(processor) for processor in drawing.processors]

    def _guarded_sampler(self, sampler: Sampler) -> Sampler:
        def sample(logprobs: mx.array) -> mx.array:
            try:
                return sampler(logprobs)
            except Exception as exc:
                self.failure = self.failure or exc
                return greedy(logprobs)

        return sample

    def _guarded_processor(self, processor: LogitsProcessor) -> LogitsProcessor:
        def process(tokens: mx.array, logits: mx.array) -> mx.array:
            try:
                return processor(tokens, logits)
            except Exception as exc:
                self.failure = self.failure or exc
                return logits

        return process


def greedy(logprobs: mx.array) -> mx.array:
    return mx.argmax(logprobs, axis=-1)


class _SeededSampler:
    """Draws with a random key of its own, so that the same seed gives the same tokens in whatever batch it runs."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._key = mx.random.key(params.seed % 2**64)

    def __call__(self, logprobs: mx.array) -> mx.array:
        self._key, draw_key = mx.random.split(self._key)
        return mx.random.categorical(self._filter(logprobs / self._params.temperature), key=draw_key)

    def _filter(self, logits: mx.array) -> mx.array:
        params = self._params
        if 0 < params.top_k < logits.shape[-1]:
            logits = apply_top_k(logits, params.top_k)
        if params.top_p < 1:
            top_p = max(params.top_p, MIN_TOP_P)
            logits = apply_top_p(logits - mx.logsumexp(logits, axis=-1, keepdims=True), top_p)
        if params.min_p > 0:
            logits = apply_min_p(logits, params.min_p)
        return logits


def _make_processors(params: SamplingParams, prompt_length: int) -> list[LogitsProcessor]:
    processors: list[LogitsProcessor] = []
    if params.repetition_penalty != 1:
        processors.append(_repetition_penalty(params.repetition_penalty))
    if params.frequency_penalty != 0 or params.presence_penalty != 0:
        processors.append(_output_penalties(params.frequency_penalty, params.presence_penalty, prompt_length))
    if params.logit_bias:
        processors.append(_logit_bias(params.logit_bias))
    return processors


def _repetition_penalty(penalty: float) -> LogitsProcessor:
    """Of every token in prompt or output: positive logits divided, negative ones multiplied (arXiv:1909.05858)."""

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        seen = mx.zeros(logits.shape[-1], dtype=mx.bool_)
        seen[tokens] = True
        return mx.where(seen, mx.where(logits < 0, logits * penalty, logits / penalty), logits)

    return process


def _output_penalties(frequency: float, presence: float, prompt_length: int) -> LogitsProcessor:
    """OpenAI's: subtracts `frequency` for each time that a token is in the output, and `presence` if it is there."""

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        counts = mx.zeros(logits.shape[-1]).at[tokens[prompt_length:]].add(1.0)
        return logits - (frequency * counts + presence * (counts > 0))

    return process


def _logit_bias(bias: dict[int, float]) -> LogitsProcessor:
    token_ids, values = mx.array(list(bias)), mx.array(list(bias.values()))

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, token_ids].add(values)

    return process
