"""The decode batch: one model call and one draw for all rows at each step, on mlx-lm's models and caches.

Launches the next step before it reads the tokens of the last one, so the device does not wait for Python. Runs in the
worker, on the engine's thread.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import TokenBuffer

from mlx_manager.mlx_server.engine.batching import Batching
from mlx_manager.mlx_server.engine.grammar import Constraint, Masks
from mlx_manager.mlx_server.engine.kv_cache import Cache, RowCache
from mlx_manager.mlx_server.engine.logprobs import StepLogprobs, step_logprobs
from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.engine.plan import Failed, Join, Outcome
from mlx_manager.mlx_server.engine.sampling import BatchSampler, Guard

Share = Callable[[mx.array, mx.array], mx.array]
"""Maps drawn tokens (B,) and the logits (B, V) of their draw to the tokens that all ranks use."""


@dataclass(slots=True, eq=False)
class Row:
    """The sampling state of a sequence, which becomes a row of the batch when it joins."""

    submitted: Submit
    guard: Guard
    constraint: Constraint | None = None
    context: TokenBuffer | None = None
    whole_nucleus: bool = False
    lead: int = 0
    """Tokens in its cache minus steps of the batch."""

    @property
    def sequence(self) -> int:
        return self.submitted.sequence

    @property
    def logprobs(self) -> int | None:
        return self.submitted.logprobs

    @property
    def failure(self) -> str | None:
        """Why the sequence must be aborted."""
        if self.guard.failure is not None:
            return f"sampling failed: {self.guard.failure!r}"
        return self.constraint.failure if self.constraint is not None else None


class DecodeBatch:
    """Rows join with all tokens prefilled except the last one, which is their first input."""

    def __init__(self, model: nn.Module, vocabulary_size: int, batching: Batching, share: Share | None = None) -> None:
        self._model = model
        self._share = share
        self._batching = batching
        self._rows: list[Row] = []
        self._sequences: list[int] = []
        self._cache: Cache = []
        self._inputs = mx.zeros((0,), dtype=mx.uint32)
        self._drawn = np.zeros(0, dtype=np.uint64)
        self._joined = 0
        self._steps = 0
        self._sampler = BatchSampler([])
        self._short: tuple[list[Row], mx.array] | None = None
        self._masks = Masks(vocabulary_size)
        self._logprobs: StepLogprobs | None = None
        self._guarded = False
        self._constrained: list[Row] = []
        self._watched: list[Row] = []
        """Rows that may fail or end by a draw."""

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, rows: list[Row], joins: list[Join], cache: Cache) -> None:
        """Adds rows; `cache` holds all of their tokens except the last ones."""
        for row, join in zip(rows, joins, strict=True):
            row.context = TokenBuffer(join.tokens[:-1]) if row.guard else None
            row.whole_nucleus = join.whole_nucleus
            row.lead = len(join.tokens) - 1 - self._steps
        if self._cache:
            for ours, theirs in zip(self._cache, cache, strict=True):
                ours.extend(theirs)
        else:
            self._cache = cache
        self._rows += rows
        last_tokens = mx.array([join.tokens[-1] for join in joins], dtype=mx.uint32)
        self._inputs = mx.concatenate([self._inputs, last_tokens])
        self._drawn = np.concatenate([self._drawn, np.array([join.generated for join in joins], dtype=np.uint64)])
        self._joined += len(rows)
        self._rows_changed()

    def step(self) -> Outcome:
        """Launches the next step, and returns the tokens of the step before it."""
        inputs = self._inputs
        raw = self._model(inputs[:, None], cache=self._cache)[:, -1, :]
        logits, contexts = self._process(raw, inputs)
        if self._constrained:
            logits = self._constrain(logits, inputs)
        self._inputs = self._sampler(logits, self._drawn)
        if self._share is not None:
            self._inputs = self._share(self._inputs, raw)
        self._drawn += np.uint64(1)
        self._steps += 1
        logprobs, self._logprobs = self._logprobs, step_logprobs(self._rows, raw, self._inputs)
        short = self._quick_draws()
        mx.async_eval(  # type: ignore[no-untyped-call]
            self._inputs, contexts, self._logprobs.arrays if self._logprobs else (), short[1] if short else ()
        )
        outcome = self._outcome(inputs, self._invalid_draws(), logprobs)
        self._short = short
        return outcome

    def held(self, sequence: int) -> RowCache:
        """The sequence's row of the cache."""
        if not self._batching.decodes:
            return RowCache(self._cache)
        place = self._sequences.index(sequence)
        return RowCache.of_batch(self._cache, place, self._rows[place].lead + self._steps)

    def wait(self) -> None:
        """Waits until the launched step is done."""
        mx.eval(self._inputs)

    def remove(self, sequences: Collection[int]) -> None:
        """Removes the sequences from the batch. Ignores those that are not in it."""
        keep = [i for i, sequence in enumerate(self._sequences) if sequence not in sequences]
        if len(keep) == len(self._rows):
            return
        self._joined -= sum(sequence in sequences for sequence in self._sequences[len(self._rows) - self._joined :])
        self._rows = [self._rows[i] for i in keep]
        self._drawn = self._drawn[keep]
        self._rows_changed()
        if not keep:
            self._cache, self._inputs = [], mx.zeros((0,), dtype=mx.uint32)
            self._logprobs, self._short = None, None
            return
        index = mx.array(keep)
        self._inputs = self._inputs[index]
        for cache in self._cache:
            cache.filter(index)

    def _rows_changed(self) -> None:
        rows = self._rows
        self._sequences = [row.sequence for row in rows]
        self._sampler = BatchSampler([row.submitted.sampling for row in rows], [not row.whole_nucleus for row in rows])
        self._guarded = any(row.guard for row in rows)
        self._constrained = [row for row in rows if row.constraint is not None]
        self._watched = [row for row in rows if row.guard or row.constraint is not None]

    def _outcome(self, inputs: mx.array, invalid: list[Row], logprobs: StepLogprobs | None) -> Outcome:
        """The tokens of the last step, which `inputs` holds, without those of invalid draws."""
        old = len(self._rows) - self._joined
        self._joined = 0
        drawn: Any = inputs.tolist()
        sequences, tokens = self._sequences[:old], drawn[:old]
        outcome = Outcome(sequences, tokens)
        if invalid:
            outcome.invalid_draws = [row.sequence for row in invalid]
            kept = [i for i, sequence in enumerate(sequences) if sequence not in outcome.invalid_draws]
            outcome.sequences = [sequences[i] for i in kept]
            outcome.tokens = [tokens[i] for i in kept]
        if logprobs is not None:
            outcome.logprobs = logprobs.read({sequence: i for i, sequence in enumerate(outcome.sequences)})
        for row in self._watched:
            if row.failure is not None:
                outcome.failed.append(Failed(row.sequence, row.failure))
            if row.constraint is not None and row.constraint.has_ended:
                outcome.ended.append(row.sequence)
        return outcome

    def _quick_draws(self) -> tuple[list[Row], mx.array] | None:
        """Rows with a quick top-p draw, and whether each draw was invalid (R,)."""
        if self._sampler.short is None:
            return None
        return [self._rows[i] for i in self._sampler.short_rows], self._sampler.short

    def _invalid_draws(self) -> list[Row]:
        """Rows whose last draw was invalid. Waits for that draw."""
        if self._short is None:
            return []
        flags: Any = self._short[1].tolist()
        invalid = {id(row) for row, is_invalid in zip(self._short[0], flags, strict=True) if is_invalid}
        return [row for row in self._rows[: len(self._rows) - self._joined] if id(row) in invalid]

    def _constrain(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """Masks the constrained rows. Reads their last tokens while the device computes the logits."""
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        tokens: Any = inputs.tolist()
        invalid = self._invalid_draws()
        for row, token in zip(self._rows[: len(self._rows) - self._joined], tokens, strict=False):
            if row.constraint is not None and row not in invalid:
                row.constraint.consume(token)
                row.constraint = None if row.constraint.is_unconstrained else row.constraint
        constrained = [(i, row.constraint) for i, row in enumerate(self._rows) if row.constraint is not None]
        if len(constrained) < len(self._constrained):
            self._constrained = [row for row in self._constrained if row.constraint is not None]
        if not constrained:
            return logits
        rows = mx.array([i for i, _ in constrained])
        masked = mx.array(logits)  # a copy: logprobs use the unmasked logits
        masked[rows] = mx.where(self._masks([constraint for _, constraint in constrained]), logits[rows], -mx.inf)
        return masked

    def _process(self, logits: mx.array, inputs: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Applies the logits processors of the rows that have any."""
        contexts: list[mx.array] = []
        if not self._guarded:
            return logits, contexts
        parts = []
        for i, row in enumerate(self._rows):
            part = logits[i : i + 1]
            if row.context is not None:
                contexts.append(row.context.update_and_fetch(inputs[i : i + 1]))
                part = row.guard(contexts[-1], part)
            parts.append(part)
        return mx.concatenate(parts), contexts
