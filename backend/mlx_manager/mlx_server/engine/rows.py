"""The KV cache of several rows, each with a length of its own, under mlx-lm's public cache interface.

Keys and values of a layer are one array of slots, (slots, H, tokens, D). A row begins at position 0 of its slot, and
slots from 0 on are in use. A row that joins is copied into the next slot, and the last row moves into the slot of one
that ends; no other row is copied. Runs in the worker, on the engine's thread.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx


class Span:
    """The lengths of a batch's rows, the size of its slots, and the positions that a model call reads and writes.

    All layers of a batch share it. With `exact`, a call has the rows and keys that are in use. Otherwise it has all
    slots and, except where no mask is needed, all positions, so shapes repeat; rows that are not in use write to
    position 0 of their slots.
    """

    def __init__(self, lengths: Sequence[int], slots: int, tokens: int, exact: bool) -> None:
        self.lengths = list(lengths)
        self.slots = slots
        self.tokens = tokens
        self.exact = exact
        self.starts = self.ends = mx.array(self.lengths)
        self._start = 0
        self._keys = 0
        self._queries = 0
        self.is_even = False
        """Whether the call reads and writes a slice, because all rows have one length."""
        self._masks: dict[tuple[int, int | None, bool], mx.array | str | None] = {}
        self._targets: dict[int, tuple[mx.array, mx.array, mx.array]] = {}
        self._indices: dict[tuple[int, int], tuple[mx.array, mx.array]] = {}

    @classmethod
    def of_step(cls, starts: mx.array, tokens: int) -> "Span":
        """For one token of each row at `starts` (rows,), which are an input of a graph: the lengths are not known."""
        span = cls([], starts.shape[0], tokens, exact=False)
        span.starts, span.ends = starts, starts + 1
        span._queries, span._keys = 1, tokens
        return span

    @property
    def rows(self) -> int:
        """Rows of a model call."""
        return len(self.lengths) if self.exact else self.slots

    def begin(self, counts: Sequence[int], queries: int) -> None:
        """Starts a model call with `queries` tokens for each row. The first `counts` of them are not padding.

        The last position takes what padding would write behind the others: no row may use it in a padded call.
        """
        lengths = self.lengths
        start = lengths[0]
        self.is_even = self._takes_slice(queries) and all(length == start for length in lengths)
        self._start = start
        self._queries = queries
        longest = (start if self.is_even else max(lengths)) + queries
        self._keys = min(longest, self.tokens) if self.exact or self.is_even else self.tokens
        unused = [0] * (self.rows - len(lengths))
        self.starts = mx.array([*lengths, *unused])
        self.lengths = [length + count for length, count in zip(lengths, counts, strict=True)]
        self.ends = mx.array([*self.lengths, *unused])
        self._masks = {}
        self._targets = {}

    def _takes_slice(self, queries: int) -> bool:
        """Whether rows of one length may read and write a slice, which needs no mask: a faster attention on a GPU.

        Attention with one query runs at any length there. With more, each pair of lengths needs a plan.
        """
        if self.exact:
            return True
        return self.slots == 1 if queries == 1 else queries <= self.tokens and not any(self.lengths)

    def write(self, slots: mx.array, part: mx.array) -> mx.array:
        """Writes `part` (rows, H, N, D) behind the rows."""
        if not part.shape[-1]:
            return slots
        if self.is_even:
            slots[: part.shape[0], :, self._start : self._start + part.shape[2]] = part
        else:
            slots[self._target(part.shape[1])] = part
        return slots

    def read(self, slots: mx.array) -> mx.array:
        """The keys or values of a call: (rows, H, keys, D)."""
        if (self.rows, self._keys) == (slots.shape[0], slots.shape[2]):
            return slots
        return slots[: self.rows, :, : self._keys]

    def mask(self, queries: int, window: int | None, as_array: bool) -> mx.array | str | None:
        """What each query may see: the positions of its row up to its own, at most `window` of them."""
        key = (queries, window, as_array)
        if key not in self._masks:
            self._masks[key] = self._new_mask(queries, window, as_array)
        return self._masks[key]

    def _new_mask(self, queries: int, window: int | None, as_array: bool) -> mx.array | str | None:
        if self.is_even and not as_array and (window is None or window >= self._keys):
            return None if queries == 1 else "causal"
        keys = mx.arange(self._keys)
        places = self._positions(queries)[:, None, :, None]
        mask = keys <= places
        return mask if window is None else mask & (keys > places - window)

    def _positions(self, queries: int) -> mx.array:
        """(rows, queries)"""
        starts = self.starts[:, None]
        return starts if queries == 1 else starts + mx.arange(queries)

    def _target(self, heads: int) -> tuple[mx.array, mx.array, mx.array]:
        """The indices of what is written, in slots, heads and positions."""
        if heads not in self._targets:
            positions = self._positions(self._queries)[:, None]
            if self._queries > 1:
                positions = mx.minimum(positions, self.tokens - 1)
            self._targets[heads] = (*self._slots_and_heads(heads), positions)
        return self._targets[heads]

    def _slots_and_heads(self, heads: int) -> tuple[mx.array, mx.array]:
        key = (self.rows, heads)
        if key not in self._indices:
            self._indices[key] = mx.arange(self.rows)[:, None, None], mx.arange(heads)[:, None]
        return self._indices[key]


class SlotsKVCache:
    """One layer of a batch, in place of mlx-lm's BatchKVCache."""

    def __init__(self, span: Span, keys: mx.array | None = None, values: mx.array | None = None) -> None:
        self.keys = keys
        self.values = values
        self.offset = span.starts
        self.span = span

    def begin(self) -> None:
        self.offset = self.span.starts

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        span = self.span
        if self.keys is None or self.values is None:
            self.keys, self.values = self._new(keys), self._new(values)
        self.keys, self.values = span.write(self.keys, keys), span.write(self.values, values)
        self.offset = span.ends
        return span.read(self.keys), span.read(self.values)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str | None:
        return self.span.mask(N, window_size, return_array)

    def size(self) -> int:
        return max(self.span.lengths)

    def is_trimmable(self) -> bool:
        return False

    def empty(self) -> bool:
        return self.keys is None

    @property
    def state(self) -> list[mx.array]:
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.state)

    def join(self, other: "SlotsKVCache", place: int) -> None:
        """Copies the rows of `other` into the slots from `place` on."""
        rows, length = len(other.span.lengths), max(other.span.lengths)
        if other.keys is None or other.values is None or not length:
            return
        if self.keys is None or self.values is None:
            self.keys, self.values = self._new(other.keys), self._new(other.values)
        self.keys[place : place + rows, :, :length] = other.keys[:rows, :, :length]
        self.values[place : place + rows, :, :length] = other.values[:rows, :, :length]

    def write_row(self, place: int, keys: mx.array, values: mx.array) -> None:
        """Writes a whole row, (1, H, T, D)."""
        if self.keys is None or self.values is None:
            self.keys, self.values = self._new(keys), self._new(values)
        self.keys[place : place + 1, :, : keys.shape[2]] = keys
        self.values[place : place + 1, :, : keys.shape[2]] = values

    def move(self, sources: mx.array, targets: mx.array) -> None:
        """Copies rows from some slots to others."""
        if self.keys is not None and self.values is not None:
            self.keys[targets] = self.keys[sources]
            self.values[targets] = self.values[sources]

    def resize(self) -> None:
        """Copies the rows into slots of the span's size, unless they have it."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self._resized(self.keys), self._resized(self.values)

    def row(self, place: int, start: int, end: int) -> tuple[mx.array, mx.array]:
        """The keys and values of one row, each (1, H, end - start, D), as views."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys[place : place + 1, :, start:end], self.values[place : place + 1, :, start:end]

    def _new(self, part: mx.array) -> mx.array:
        return mx.zeros((self.span.slots, part.shape[1], self.span.tokens, part.shape[3]), part.dtype)

    def _resized(self, part: mx.array) -> mx.array:
        slots, tokens = self.span.slots, self.span.tokens
        if (part.shape[0], part.shape[2]) == (slots, tokens):
            return part
        part = part[: len(self.span.lengths), :, :tokens]
        more: Any = [(0, slots - part.shape[0]), (0, 0), (0, tokens - part.shape[2]), (0, 0)]
        return mx.pad(part, more) if any(after for _, after in more) else mx.contiguous(part)


def places_without(count: int, removed: Sequence[int]) -> list[int]:
    """The order of `count` rows without some: the last rows take the places of those that are removed."""
    left = count - len(removed)
    order = list(range(left))
    last = (place for place in range(left, count) if place not in removed)
    for place in removed:
        if place < left:
            order[place] = next(last)
    return order
