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

from mlx_manager.mlx_server.engine.kv_cache import Cache, merge

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
    """`prefills`: prompts of different lengths may share a forward pass. `decodes`: rows may be decoded in a batch."""

    prefills: bool
    decodes: bool


def prefill_together(model: nn.Module, cache: Cache, prompts: list[list[int]]) -> None:
    """Prefills one prompt for each row of the cache in one forward pass, right-padded to the longest."""
    lengths = [len(tokens) for tokens in prompts]
    padding = [max(lengths) - length for length in lengths]
    if any(padding):
        for layer in cache:
            layer.prepare(lengths=lengths, right_padding=padding)
    if any(lengths):
        model(mx.array([tokens + [0] * count for tokens, count in zip(prompts, padding, strict=True)]), cache=cache)
    if any(padding):
        for layer in cache:
            layer.finalize()
    mx.eval([layer.state for layer in cache if not layer.empty()])


def try_batching(model: nn.Module, vocabulary_size: int) -> Batching:
    """Tests decode and prefill separately: an architecture may fail only one of them."""
    kinds = {type(layer).__name__ for layer in make_prompt_cache(model) if not hasattr(layer, "merge")}
    if kinds:
        fault: str | None = f"mlx-lm cannot merge its {', '.join(sorted(kinds))}"
    else:
        trial = _Trial(model, vocabulary_size)
        fault = trial.fault(trial.decoded)
    if fault is not None:
        logger.warning("This model decodes one sequence at a time: %s", fault)
        return Batching(prefills=False, decodes=False)
    fault = trial.fault(trial.prefilled)
    if fault is not None:
        logger.warning("This model prefills one prompt at a time: %s", fault)
    return Batching(prefills=fault is None, decodes=True)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the trial, run alone: its caches before and after its prompt, and its `logits` (STEPS, V)."""

    beginning: Cache
    prompt: list[int]
    end: Cache
    answer: list[int]
    logits: mx.array


class _Trial:
    """Three rows of different lengths. The first is the longest, has no padding, and starts with an empty cache.

    The others start with part of their prompts in the cache, like rows with a cached prefix.
    """

    def __init__(self, model: nn.Module, vocabulary_size: int) -> None:
        self._model = model
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
            return f"mlx-lm cannot batch it ({type(exc).__name__}: {exc})"
        distances = [_distance(ours, row.logits) for ours, row in zip(logits, self._rows, strict=True)]
        if max(distances) <= MAX_TOLERANCE and min(distances[1:]) <= self._tolerance:
            return None
        apart = " ".join(f"{distance:.2f}" for distance in distances)
        return f"batching changes the logits of {type(self._model).__module__} by {apart} of their spread"

    def decoded(self) -> mx.array:
        """Logits of a batch of rows that were prefilled alone."""
        return self._decode(merge([copy.deepcopy(row.end) for row in self._rows]), [row.answer for row in self._rows])

    def prefilled(self) -> mx.array:
        """Logits of a batch of rows that were prefilled together. Errors of padding show only in decoding."""
        cache = merge([copy.deepcopy(row.beginning) for row in self._rows])
        prefill_together(self._model, cache, [row.prompt for row in self._rows])
        return self._decode(cache, [row.answer for row in self._rows])

    def _run_alone(self, beginning: list[int], prompt: list[int], answer: list[int]) -> _Row:
        cache = make_prompt_cache(self._model)
        if beginning:
            self._model(mx.array([beginning]), cache=cache)
        before = copy.deepcopy(cache)
        self._model(mx.array([prompt]), cache=cache)
        end = copy.deepcopy(cache)
        return _Row(before, prompt, end, answer, self._decode(cache, [answer])[0])

    def _decode(self, cache: Cache, answers: list[list[int]]) -> mx.array:
        """(rows, STEPS, V): the logits after each token of the answers."""
        steps = [self._model(mx.array(answers)[:, i : i + 1], cache=cache) for i in range(STEPS)]
        logits = mx.concatenate(steps, axis=1).astype(mx.float32)
        mx.eval(logits)
        return logits


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
