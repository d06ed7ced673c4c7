"""Tests at load whether a model can be batched: rows in a batch must have the same logits as rows alone.

Some of mlx-lm's architectures ignore the lengths or the mask of a padded batch, and some of its caches cannot be
merged. Runs in the worker, on the engine's thread.
"""

import copy
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.compiled_decode import CompiledDecode
from mlx_manager.mlx_server.engine.kv_cache import Cache, RowsCache, can_batch

STEPS = 2
"""Tokens that each row of the trial decodes."""
MIN_TOLERANCE = 0.02
"""Largest accepted distance of logits, relative to their spread; larger if the model itself rounds more."""
MAX_TOLERANCE = 0.3
"""Larger distances are never caused by rounding."""
ROUNDING_FACTOR = 4
"""A model at 16 bits rounds by 1 to 8 % of the spread when the shapes of its products change."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batching:
    """`prefills`: prompts of different lengths may share a forward pass. `decodes`: rows may be decoded in a batch.

    `compiled`: replaces the model in decode steps.
    """

    prefills: bool
    decodes: bool
    compiled: CompiledDecode | None = None


def try_batching(model: nn.Module, vocabulary_size: int, repeats_shapes: bool = False) -> Batching:
    """Tests decode and prefill separately: an architecture may fail only one of them.

    With `repeats_shapes`, all layers are in slots, and the decode step is compiled if that leaves the logits the same.
    """
    kinds = {type(layer).__name__ for layer in make_prompt_cache(model) if not can_batch(layer)}
    if kinds:
        fault: str | None = f"mlx-lm cannot merge its {', '.join(sorted(kinds))}"
    else:
        trial = _Trial(model, vocabulary_size, exact=not repeats_shapes)
        fault = trial.fault(trial.decoded)
    if fault is not None:
        logger.warning("This model decodes one sequence at a time: %s", fault)
        return Batching(prefills=False, decodes=False)
    fault = trial.fault(trial.prefilled)
    if fault is not None:
        logger.warning("This model prefills one prompt at a time: %s", fault)
        return Batching(prefills=False, decodes=True)
    if not repeats_shapes:
        return Batching(prefills=True, decodes=True)
    compiled = CompiledDecode(model)
    fault = trial.fault(lambda: trial.decoded(compiled))
    if fault is not None:
        logger.warning("The decode steps of this model are not compiled: %s", fault)
    return Batching(prefills=True, decodes=True, compiled=compiled if fault is None else None)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the trial, run alone: its caches before its prompt and after it, then of `length` tokens."""

    beginning: Cache
    prompt: list[int]
    end: Cache
    answer: list[int]
    length: int
    logits: mx.array
    """(STEPS, V)"""


class _Trial:
    """Three rows of different lengths. The first is the longest, has no padding, and starts with an empty cache.

    The others start with part of their prompts in the cache, like rows with a cached prefix.
    """

    def __init__(self, model: nn.Module, vocabulary_size: int, exact: bool) -> None:
        self._model = model
        self._exact = exact
        draw = random.Random(0)
        parts = [[[draw.randrange(vocabulary_size) for _ in range(n)] for n in (*row, STEPS)] for row in _TOKENS]
        self._rows = [self._run_alone(*row) for row in parts]
        beginning, prompt, answer = parts[-1]
        again = self._run_alone([], beginning + prompt, answer)
        rounding = _distance(again.logits, self._rows[-1].logits)
        self._tolerance = min(max(MIN_TOLERANCE, ROUNDING_FACTOR * rounding), MAX_TOLERANCE)

    def fault(self, together: Callable[[], mx.array]) -> str | None:
        """Why the logits (rows, STEPS, V) from `together` are wrong. None if they are right."""
        try:
            logits = together()
        except Exception as exc:  # an architecture may raise anything for unexpected shapes
            return f"its model call raises {type(exc).__name__}: {exc}"
        distances = [_distance(ours, row.logits) for ours, row in zip(logits, self._rows, strict=True)]
        if max(distances) <= MAX_TOLERANCE and min(distances[1:]) <= self._tolerance:
            return None
        apart = " ".join(f"{distance:.2f}" for distance in distances)
        return f"the logits of {type(self._model).__module__} change by {apart} of their spread"

    def decoded(self, compiled: CompiledDecode | None = None) -> mx.array:
        """Logits of a batch that rows join one after the other, after they were prefilled alone."""
        first, *others = [RowsCache.alone(copy.deepcopy(row.end), row.length) for row in self._rows]
        batch = RowsCache.merge([first], self._exact, _SLOTS, _SLOT_TOKENS)
        for row in others:
            batch.join(RowsCache.merge([row], self._exact))
        return self._decode(batch, compiled)

    def prefilled(self) -> mx.array:
        """Logits of a batch of rows that were prefilled together. Errors of padding show only in decoding."""
        rows = [RowsCache.alone(copy.deepcopy(row.beginning), row.length - len(row.prompt)) for row in self._rows]
        batch = RowsCache.merge(rows, self._exact, _SLOTS, _SLOT_TOKENS)
        prompts = [row.prompt for row in self._rows]
        batch.prefill(self._model, prompts, max(map(len, prompts)))
        mx.eval(list(batch.arrays()))
        return self._decode(batch)

    def _run_alone(self, beginning: list[int], prompt: list[int], answer: list[int]) -> _Row:
        cache = make_prompt_cache(self._model)
        if beginning:
            self._model(mx.array([beginning]), cache=cache)
        before = copy.deepcopy(cache)
        self._model(mx.array([prompt]), cache=cache)
        end = copy.deepcopy(cache)
        steps = [self._model(mx.array([answer])[:, i : i + 1], cache=cache)[0] for i in range(STEPS)]
        return _Row(before, prompt, end, answer, len(beginning) + len(prompt), _evaluated(mx.concatenate(steps)))

    def _decode(self, batch: RowsCache, compiled: CompiledDecode | None = None) -> mx.array:
        """(rows, STEPS, V): the logits after each token of the answers."""
        answers = mx.array([row.answer for row in self._rows])
        model = compiled or self._model
        return _evaluated(mx.stack([batch.decode(model, answers[:, i]) for i in range(STEPS)], axis=1))


def _evaluated(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    mx.eval(logits)
    return logits


_SLOTS, _SLOT_TOKENS = 4, 32
_TOKENS = ((0, 24), (12, 3), (5, 11))
"""For each row of the trial: tokens in its cache at first, and tokens of its prompt."""


def _distance(ours: mx.array, alone: mx.array) -> float:
    """Distance of logits (STEPS, V) at the worst step, relative to the spread of the logits of the row alone.

    Ignores logits that the architecture sets to minus infinity. Infinite if other logits are not finite.
    """
    distances = []
    for row, expected in zip(np.array(ours), np.array(alone), strict=True):
        known = np.isfinite(expected)
        spread = np.linalg.norm(expected[known] - expected[known].mean()) if known.any() else 0.0
        distance = float(np.linalg.norm(row[known] - expected[known]) / max(float(spread), 1e-9))
        distances.append(distance if np.isfinite(distance) else np.inf)
    return max(distances)
