"""The running sequences, decoded together: one model call and one draw for all of them at each step.

Built on mlx-lm's model and cache classes. The next step is launched before the tokens of the last one are read, so the
device does not wait for Python. Runs in the worker, on the engine's thread.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import TokenBuffer

from mlx_manager.mlx_server.engine.batching import Batching
from mlx_manager.mlx_server.engine.grammar import Constraint, Masks
from mlx_manager.mlx_server.engine.kv_cache import Cache, RowCache
from mlx_manager.mlx_server.engine.logprobs import TakenLogprobs, take_logprobs
from mlx_manager.mlx_server.engine.messages import Logprobs
from mlx_manager.mlx_server.engine.sampling import BatchSampler, Guard
from mlx_manager.mlx_server.types import FinishReason, SamplingParams, Thinking


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """A sequence in the engine. `tokens` are the prompt's and those that were handed out.

    `cached_tokens` is how many of the prompt were in the prefix cache, None before that is known, and `queue_seconds`
    how long it waited for its turn.
    """

    sequence: int
    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    stop_tokens: frozenset[int]
    sampling: SamplingParams
    guard: Guard
    logprobs: int | None = None
    prompt_logprobs: bool = False
    cached_tokens: int | None = None
    queue_seconds: float = 0.0
    context: TokenBuffer | None = None
    thinking: Thinking | None = None
    constraint: Constraint | None = None
    needs_whole_nucleus: bool = False
    """Whether the likeliest tokens have fallen short of its top-p before: it draws from the sorted vocabulary."""

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def failure(self) -> str | None:
        """Why the row cannot go on."""
        if self.guard.failure is not None:
            return f"sampling failed: {self.guard.failure!r}"
        return self.constraint.failure if self.constraint is not None else None

    def finish_reason(self, token: int) -> FinishReason | None:
        if token in self.stop_tokens or (self.constraint is not None and self.constraint.has_ended):
            return "stop"
        return "length" if self.generated == self.max_tokens else None


class DecodeBatch:
    """Rows join with their tokens prefilled but for the last one, which is their first input."""

    def __init__(self, model: nn.Module, vocabulary_size: int, batching: Batching) -> None:
        self.rows: list[Row] = []
        self.logprobs: Logprobs | None = None
        """Of the tokens that the last step gave, for the rows that asked; places are those in what it gave."""
        self.fallen_short: list[Row] = []
        """Rows of which the last step gives no token, because it was not drawn from their whole nucleus. It is in the
        cache behind their tokens, so they have to begin again."""
        self._model = model
        self._batching = batching
        self._cache: Cache = []
        self._inputs = mx.zeros((0,), dtype=mx.uint32)
        self._drawn = np.zeros(0, dtype=np.uint64)
        self._joined = 0
        self._sampler = BatchSampler([])
        self._short: tuple[list[Row], mx.array] | None = None
        self._masks = Masks(vocabulary_size)
        self._taken: TakenLogprobs[Row] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def join(self, rows: list[Row], cache: Cache) -> None:
        """Adds rows, whose `cache` holds all of their tokens but the last ones."""
        for row in rows:
            if row.guard:
                row.context = TokenBuffer(row.tokens[:-1])
        if self._cache:
            for ours, theirs in zip(self._cache, cache, strict=True):
                ours.extend(theirs)
        else:
            self._cache = cache
        self.rows += rows
        last_tokens = mx.array([row.tokens[-1] for row in rows], dtype=mx.uint32)
        self._inputs = mx.concatenate([self._inputs, last_tokens])
        self._drawn = np.concatenate([self._drawn, np.array([row.generated for row in rows], dtype=np.uint64)])
        self._joined += len(rows)
        self._sampler = _sampler(self.rows)

    def step(self) -> list[tuple[Row, int]]:
        """Launches the next step, and gives the last one's token for each row that took part in it."""
        inputs = self._inputs
        raw = self._model(inputs[:, None], cache=self._cache)[:, -1, :]
        logits, contexts = self._process(raw, inputs)
        if any(row.constraint is not None for row in self.rows):
            logits = self._constrain(logits, inputs)
        self._inputs = self._sampler(logits, self._drawn)
        self._drawn += np.uint64(1)
        taken, self._taken = self._taken, take_logprobs(self.rows, raw, self._inputs)
        short = self._drawn_quickly()
        mx.async_eval(  # type: ignore[no-untyped-call]
            self._inputs, contexts, self._taken.arrays if self._taken else (), short[1] if short else ()
        )
        self.fallen_short, self._short = self._fallen_short(), short
        old = len(self.rows) - self._joined
        self._joined = 0
        tokens: Any = inputs.tolist()
        given = [pair for pair in zip(self.rows[:old], tokens[:old], strict=True) if pair[0] not in self.fallen_short]
        for row, token in given:
            row.tokens.append(token)
        self.logprobs = taken.read({id(row): i for i, (row, _) in enumerate(given)}) if taken else None
        return given

    @property
    def longest(self) -> int:
        """Tokens of the longest row, and so of the cache."""
        return max((len(row.tokens) for row in self.rows), default=0)

    def held(self, row: Row) -> tuple[list[int], RowCache]:
        """The row's tokens that are in the cache, all but the last of one that has not had a step, and its cache."""
        place = self.rows.index(row)
        tokens = row.tokens if place < len(self.rows) - self._joined else row.tokens[:-1]
        if not self._batching.decodes:
            return tokens, RowCache(self._cache)
        return tokens, RowCache.of_batch(self._cache, place, len(tokens) + (row in self.fallen_short))

    def wait(self) -> None:
        """Until the step that was launched is done."""
        mx.eval(self._inputs)

    def remove(self, rows: list[Row]) -> None:
        """Takes those of the rows that are in the batch out of it."""
        gone = set(map(id, rows))
        keep = [i for i, row in enumerate(self.rows) if id(row) not in gone]
        if len(keep) == len(self.rows):
            return
        self._joined -= sum(id(row) in gone for row in self.rows[len(self.rows) - self._joined :])
        self.rows = [self.rows[i] for i in keep]
        self._drawn = self._drawn[keep]
        self._sampler = _sampler(self.rows)
        if not keep:
            self._cache, self._inputs = [], mx.zeros((0,), dtype=mx.uint32)
            self._taken, self._short = None, None
            return
        index = mx.array(keep)
        self._inputs = self._inputs[index]
        for cache in self._cache:
            cache.filter(index)

    def _drawn_quickly(self) -> tuple[list[Row], mx.array] | None:
        """Rows whose draw has to be checked, and whether each fell short (R,)."""
        if self._sampler.short is None:
            return None
        return [self.rows[i] for i in self._sampler.short_rows], self._sampler.short

    def _fallen_short(self) -> list[Row]:
        """Rows whose last draw was not valid. Waits for that draw."""
        if self._short is None:
            return []
        flags: Any = self._short[1].tolist()
        fallen = {id(row) for row, fell_short in zip(self._short[0], flags, strict=True) if fell_short}
        return [row for row in self.rows[: len(self.rows) - self._joined] if id(row) in fallen]

    def _constrain(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """Masks the constrained rows, for which their last tokens are read while the device computes the logits."""
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        tokens: Any = inputs.tolist()
        fallen = self._fallen_short()
        for row, token in zip(self.rows[: len(self.rows) - self._joined], tokens, strict=False):
            if row.constraint is not None and row not in fallen:
                row.constraint.consume(token)
                row.constraint = None if row.constraint.is_void else row.constraint
        constrained = [(i, row.constraint) for i, row in enumerate(self.rows) if row.constraint is not None]
        if not constrained:
            return logits
        rows = mx.array([i for i, _ in constrained])
        masked = mx.array(logits)  # the logprobs are of those without a mask
        masked[rows] = mx.where(self._masks([constraint for _, constraint in constrained]), logits[rows], -mx.inf)
        return masked

    def _process(self, logits: mx.array, inputs: mx.array) -> tuple[mx.array, list[mx.array]]:
        """The rows' processors, on the rows that have any."""
        contexts: list[mx.array] = []
        if not any(row.guard for row in self.rows):
            return logits, contexts
        parts = []
        for i, row in enumerate(self.rows):
            part = logits[i : i + 1]
            if row.context is not None:
                contexts.append(row.context.update_and_fetch(inputs[i : i + 1]))
                part = row.guard(contexts[-1], part)
            parts.append(part)
        return mx.concatenate(parts), contexts


def _sampler(rows: list[Row]) -> BatchSampler:
    return BatchSampler([row.sampling for row in rows], [not row.needs_whole_nucleus for row in rows])
