"""The decode batch: one model call and one draw for all rows at each step, on mlx-lm's models and caches.

Launches the next step before it reads the tokens of the last one, so the device does not wait for Python. Runs in the
worker, on the engine's thread.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_manager.mlx_server.engine.compiled_decode import Decoder
from mlx_manager.mlx_server.engine.grammar import Constraint, Masks
from mlx_manager.mlx_server.engine.kv_cache import RowCache, RowsCache
from mlx_manager.mlx_server.engine.logprobs import StepLogprobs, step_logprobs
from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.engine.penalties import Penalties
from mlx_manager.mlx_server.engine.plan import Failed, GroupEdit, Join, Move, Outcome, Resize
from mlx_manager.mlx_server.engine.rows import places_without
from mlx_manager.mlx_server.engine.sampling import BatchSampler, Integers

Share = Callable[[mx.array, mx.array], mx.array]
"""Maps drawn tokens (B,) and the logits (B, V) of their draw to the tokens that all ranks use."""


@dataclass(slots=True, eq=False)
class Row:
    """The sampling state of a sequence, which becomes a row of the batch when it joins."""

    submitted: Submit
    constraint: Constraint | None = None
    whole_nucleus: bool = False
    is_new: bool = True
    """Whether it joined after the last step: its input is a token of its prompt, not a draw."""

    @property
    def sequence(self) -> int:
        return self.submitted.sequence

    @property
    def logprobs(self) -> int | None:
        return self.submitted.logprobs

    @property
    def failure(self) -> str | None:
        """Why the sequence must be aborted."""
        return self.constraint.failure if self.constraint is not None else None


@dataclass(slots=True, eq=False)
class _Group:
    """Rows that share a model call. `size` is that of its slots: their number, and the tokens of each."""

    rows: list[Row] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    cache: RowsCache | None = None

    def join(self, rows: list[Row], cache: RowsCache) -> None:
        if self.cache is None:
            self.cache = cache
            cache.resize(*self.size)
        else:
            self.cache.join(cache)
        self.rows = self.rows + rows

    def keep(self, kept: list[Row]) -> None:
        """Keeps some rows. The last ones move into the places of those that leave."""
        assert self.cache is not None
        order = places_without(len(self.rows), [i for i, row in enumerate(self.rows) if row not in kept])
        self.cache.keep(order)
        self.rows = [self.rows[i] for i in order]

    def decode(self, model: Decoder, inputs: mx.array) -> mx.array:
        assert self.cache is not None
        return self.cache.decode(model, inputs)


class DecodeBatch:
    """Rows join with all tokens prefilled except the last one, which is their first input.

    Each group of rows has a model call of its own in each step; one draw follows for all of them. `batches`: whether
    the model takes several rows. `exact`: see `Span`. `share` gives each rank the tokens that rank 0 has drawn.
    """

    def __init__(
        self, decoder: Decoder, vocabulary_size: int, batches: bool, exact: bool, share: Share | None = None
    ) -> None:
        self._decoder = decoder
        self._batches = batches
        self._exact = exact
        self._share = share
        self._groups: dict[int, _Group] = {}
        self._rows: list[Row] = []
        """Of all groups, one group after the other."""
        self._sequences: list[int] = []
        self._inputs = mx.zeros((0,), dtype=mx.uint32)
        self._drawn = np.zeros(0, dtype=np.uint64)
        self._has_new = False
        self._sampler = BatchSampler([])
        self._short: tuple[list[Row], mx.array] | None = None
        self._penalties = Penalties(vocabulary_size)
        self._masks = Masks(vocabulary_size)
        self._logprobs: StepLogprobs | None = None
        self._constrained: list[Row] = []
        self._watched: list[Row] = []
        """Rows that may fail or end by a draw."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Of the caches."""
        return sum(group.cache.nbytes for group in self._groups.values() if group.cache is not None)

    def join(self, rows: list[Row], joins: list[Join], cache: RowsCache) -> None:
        """Adds rows; `cache` holds all of their tokens except the last ones."""
        for row, join in zip(rows, joins, strict=True):
            row.whole_nucleus = join.whole_nucleus
            row.is_new = True
        for number in sorted({join.group for join in joins}):
            places = [i for i, join in enumerate(joins) if join.group == number]
            group = self._groups[number]
            self._add(group, [rows[i] for i in places], cache, places)
        self._has_new = True
        last_tokens = mx.array([join.tokens[-1] for join in joins], dtype=mx.uint32)
        drawn = np.array([join.generated for join in joins], dtype=np.uint64)
        self._penalties.join(
            [row.submitted.sampling for row in rows],
            [join.tokens for join in joins],
            [join.generated for join in joins],
        )
        self._arrange(
            self._rows + rows, mx.concatenate([self._inputs, last_tokens]), np.concatenate([self._drawn, drawn])
        )

    def edit(self, edits: list[GroupEdit]) -> None:
        """Changes the groups."""
        for edit in edits:
            group = self._groups.setdefault(edit.group, _Group())
            match edit:
                case Resize(_, slots, tokens):
                    group.size = (slots, tokens)
                    if group.cache is not None:
                        group.cache.resize(slots, tokens)
                case Move(sequences, _):
                    self._move(sequences, group)

    def _move(self, sequences: list[int], target: _Group) -> None:
        source = next(group for group in self._groups.values() if any(row.sequence in sequences for row in group.rows))
        places = [i for i, row in enumerate(source.rows) if row.sequence in sequences]
        rows = [source.rows[i] for i in places]
        assert source.cache is not None
        self._add(target, rows, source.cache, places)
        self._keep(source, [row for row in source.rows if row not in rows])
        self._arrange(self._rows, self._inputs, self._drawn)

    def step(self) -> Outcome:
        """Launches the next step, and returns the tokens of the step before it."""
        inputs = self._inputs
        raw = self._decode(inputs)
        logits = self._penalties(raw, self._drawn)
        if self._constrained:
            logits = self._constrain(logits, inputs)
        self._inputs = self._sampler(logits, self._drawn)
        if self._share is not None:
            self._inputs = self._share(self._inputs, raw)
        self._penalties.note(self._inputs)
        self._drawn += np.uint64(1)
        logprobs, self._logprobs = self._logprobs, step_logprobs(self._rows, raw, self._inputs)
        short = self._quick_draws()
        mx.async_eval(  # type: ignore[no-untyped-call]
            self._inputs,
            self._penalties.arrays,
            self._logprobs.arrays if self._logprobs else (),
            short[1] if short else (),
        )
        outcome = self._outcome(inputs, self._invalid_draws(), logprobs)
        self._short = short
        return outcome

    def _add(self, group: _Group, rows: list[Row], cache: RowsCache, places: list[int]) -> None:
        """Adds the rows of `cache` at `places` to the group."""
        if not self._batches or (cache.is_batch and len(places) == len(cache.lengths)):
            group.join(rows, cache)
            return
        for row, place in zip(rows, places, strict=True):
            group.join([row], RowsCache.merge([cache.single(place)], self._exact))

    def held(self, sequence: int) -> RowCache:
        """The sequence's row of the cache."""
        for group in self._groups.values():
            for place, row in enumerate(group.rows):
                if row.sequence == sequence and group.cache is not None:
                    return group.cache.row(place)
        raise KeyError(sequence)

    def wait(self) -> None:
        """Waits until the launched step is done."""
        mx.eval(self._inputs)

    def remove(self, sequences: Collection[int]) -> None:
        """Removes the sequences from the batch. Ignores those that are not in it."""
        if not any(sequence in sequences for sequence in self._sequences):
            return
        for group in list(self._groups.values()):
            self._keep(group, [row for row in group.rows if row.sequence not in sequences])
        self._arrange(self._rows, self._inputs, self._drawn)
        if not self._rows:
            self._logprobs, self._short = None, None

    def _keep(self, group: _Group, rows: list[Row]) -> None:
        if not rows:
            self._groups = {number: other for number, other in self._groups.items() if other is not group}
        elif len(rows) < len(group.rows):
            group.keep(rows)

    def _arrange(self, rows: list[Row], inputs: mx.array, drawn: Integers) -> None:
        """Takes the order of the groups' rows for `inputs` and `drawn`, which are in the order of `rows`."""
        places = {id(row): place for place, row in enumerate(rows)}
        self._rows = [row for group in self._groups.values() for row in group.rows]
        order = [places[id(row)] for row in self._rows]
        if order != list(range(len(rows))):
            inputs, drawn = inputs[mx.array(order, dtype=mx.uint32)], drawn[order]
            self._penalties.keep(order)
        self._inputs, self._drawn = inputs, drawn
        self._rows_changed()

    def _rows_changed(self) -> None:
        rows = self._rows
        self._sequences = [row.sequence for row in rows]
        self._sampler = BatchSampler([row.submitted.sampling for row in rows], [not row.whole_nucleus for row in rows])
        self._constrained = [row for row in rows if row.constraint is not None]
        self._watched = list(self._constrained)

    def _decode(self, inputs: mx.array) -> mx.array:
        """Logits (B, V) of all groups."""
        groups = list(self._groups.values())
        if len(groups) == 1:
            return groups[0].decode(self._decoder, inputs)
        parts: list[mx.array] = []
        place = 0
        for group in groups:
            own = inputs[place : place + len(group.rows)]
            if parts and self._share is not None:  # all ranks must run the operations of the model in one order
                (own,) = mx.depends([own], [parts[-1]])
            parts.append(group.decode(self._decoder, own))
            place += len(group.rows)
        return mx.concatenate(parts)

    def _outcome(self, inputs: mx.array, invalid: list[Row], logprobs: StepLogprobs | None) -> Outcome:
        """The tokens of the last step, which `inputs` holds, without those of invalid draws."""
        tokens: Any = inputs.tolist()
        sequences = self._sequences
        if self._has_new:
            old = [i for i, row in enumerate(self._rows) if not row.is_new]
            sequences, tokens = [sequences[i] for i in old], [tokens[i] for i in old]
            self._has_new = False
            for row in self._rows:
                row.is_new = False
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
        return [row for row in self._rows if id(row) in invalid and not row.is_new]

    def _constrain(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """Masks the constrained rows. Reads their last tokens while the device computes the logits."""
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        tokens: Any = inputs.tolist()
        invalid = self._invalid_draws()
        for row, token in zip(self._rows, tokens, strict=True):
            if row.constraint is not None and not row.is_new and row not in invalid:
                row.constraint.consume(token)
                row.constraint = None if row.constraint.is_unconstrained else row.constraint
        constrained = [(i, row.constraint) for i, row in enumerate(self._rows) if row.constraint is not None]
        if len(constrained) < len(self._constrained):
            self._constrained = [row for row in self._constrained if row.constraint is not None]
        if not constrained:
            return logits
        allowed = self._masks([constraint for _, constraint in constrained])
        if len(constrained) == len(self._rows):
            return mx.where(allowed, logits, -mx.inf)
        rows = mx.array([i for i, _ in constrained])
        masked = mx.array(logits)  # a copy: logprobs use the unmasked logits
        masked[rows] = mx.where(allowed, logits[rows], -mx.inf)
        return masked
