"""The caches of all layers of one model, for one row or a batch, and their memory. Knows no sequences.

Which class holds a layer's rows in a batch, for each of mlx-lm's caches:

- `KVCache`: `SlotsKVCache` (`rows.py`), a slot for each row.
- `RotatingKVCache`: mlx-lm's `BatchRotatingKVCache`, the last `max_size` tokens of each row, left-padded.
- `ArraysCache`: itself, a state of fixed size for each row.
- `CacheList`: a `CacheList` of the classes that hold its parts.
- `QuantizedKVCache`, `ChunkedKVCache`, `ConcatenateKVCache`, and an architecture's own without `merge`: none. The model
  decodes one row at a time, in this cache.
- An architecture's own with `merge`: what its `merge` returns.

Runs in the worker, on the engine's thread.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from mlx_manager.mlx_server.engine.compiled_decode import Decoder
from mlx_manager.mlx_server.engine.rows import SlotsKVCache, Span
from mlx_manager.mlx_server.engine.shapes import GROWTH_TOKENS

Cache = list[Any]
"""mlx-lm's caches of all layers, for one row."""
KeysAndValues = tuple[mx.array, mx.array]
"""Of one layer, each (1, H, T, D)."""


class Layer(Protocol):
    """One layer of a cache. `cache` is what the model gets."""

    cache: Any

    def begin(self, counts: Sequence[int], padding: Sequence[int]) -> None:
        """Starts a model call with `counts` tokens of each row and `padding` behind them."""

    def finish(self, padding: Sequence[int]) -> None: ...

    def join(self, other: Any, place: int) -> None:
        """Adds the rows of another batch from `place` on."""

    def keep(self, order: list[int], moved: tuple[mx.array, mx.array] | None) -> None:
        """Keeps the rows at the places in `order`: those that are not where they were are in `moved`."""

    def resize(self) -> None: ...

    def cut(self, place: int, start: int, end: int) -> KeysAndValues: ...

    def single(self, place: int, length: int) -> Any:
        """mlx-lm's cache of one row, perhaps of views."""


@dataclass(slots=True)
class _Alone:
    """One row in mlx-lm's cache."""

    cache: Any

    def begin(self, counts: Sequence[int], padding: Sequence[int]) -> None:
        pass

    def finish(self, padding: Sequence[int]) -> None:
        pass

    def join(self, other: Any, place: int) -> None:
        raise NotImplementedError

    def keep(self, order: list[int], moved: tuple[mx.array, mx.array] | None) -> None:
        pass

    def resize(self) -> None:
        pass

    def cut(self, place: int, start: int, end: int) -> KeysAndValues:
        return self.cache.keys[:, :, start:end], self.cache.values[:, :, start:end]

    def single(self, place: int, length: int) -> Any:
        return self.cache


@dataclass(slots=True)
class _Slots:
    cache: SlotsKVCache

    def begin(self, counts: Sequence[int], padding: Sequence[int]) -> None:
        self.cache.begin()

    def finish(self, padding: Sequence[int]) -> None:
        pass

    def join(self, other: "_Slots", place: int) -> None:
        self.cache.join(other.cache, place)

    def keep(self, order: list[int], moved: tuple[mx.array, mx.array] | None) -> None:
        if moved is not None:
            self.cache.move(*moved)

    def resize(self) -> None:
        self.cache.resize()

    def cut(self, place: int, start: int, end: int) -> KeysAndValues:
        return self.cache.row(place, start, end)

    def single(self, place: int, length: int) -> KVCache:
        row = KVCache()
        if not self.cache.empty():
            row.state = *self.cache.row(place, 0, length), length
        return row


@dataclass(slots=True)
class _Merged:
    """mlx-lm's class for a batch."""

    cache: Any

    def begin(self, counts: Sequence[int], padding: Sequence[int]) -> None:
        if any(padding):
            self.cache.prepare(lengths=list(counts), right_padding=list(padding))

    def finish(self, padding: Sequence[int]) -> None:
        if any(padding):
            self.cache.finalize()

    def join(self, other: "_Merged", place: int) -> None:
        self.cache.extend(other.cache)

    def keep(self, order: list[int], moved: tuple[mx.array, mx.array] | None) -> None:
        self.cache.filter(mx.array(order))

    def resize(self) -> None:
        pass

    def cut(self, place: int, start: int, end: int) -> KeysAndValues:
        raise NotImplementedError

    def single(self, place: int, length: int) -> Any:
        return self.cache.extract(place)


class _List:
    """mlx-lm's CacheList of several caches."""

    def __init__(self, parts: list[Layer]) -> None:
        self.parts = parts
        self.cache = CacheList(*(part.cache for part in parts))

    def begin(self, counts: Sequence[int], padding: Sequence[int]) -> None:
        for part in self.parts:
            part.begin(counts, padding)

    def finish(self, padding: Sequence[int]) -> None:
        for part in self.parts:
            part.finish(padding)

    def join(self, other: "_List", place: int) -> None:
        for part, theirs in zip(self.parts, other.parts, strict=True):
            part.join(theirs, place)

    def keep(self, order: list[int], moved: tuple[mx.array, mx.array] | None) -> None:
        for part in self.parts:
            part.keep(order, moved)

    def resize(self) -> None:
        for part in self.parts:
            part.resize()

    def cut(self, place: int, start: int, end: int) -> KeysAndValues:
        raise NotImplementedError

    def single(self, place: int, length: int) -> CacheList:
        return CacheList(*(part.single(place, length) for part in self.parts))


class RowsCache:
    """The cache of some rows, and the model calls on it."""

    def __init__(self, layers: list[Layer], span: Span) -> None:
        self.layers = layers
        self._caches = [layer.cache for layer in layers]
        self._span = span

    @classmethod
    def alone(cls, cache: Cache, length: int) -> "RowsCache":
        """One row of `length` tokens in mlx-lm's caches."""
        return cls([_Alone(layer) for layer in cache], Span([length], 1, length, exact=True))

    @classmethod
    def merge(cls, rows: "list[RowsCache]", exact: bool, slots: int = 1, tokens: int | None = None) -> "RowsCache":
        """A batch of caches of one row each. A single row without `tokens` keeps its arrays."""
        singles = [[layer.single(0, row.lengths[0]) for layer in row.layers] for row in rows]
        span = Span([row.lengths[0] for row in rows], slots, 0 if tokens is None else tokens, exact)
        return cls([_merged(list(layers), span) for layers in zip(*singles, strict=True)], span)

    @property
    def lengths(self) -> list[int]:
        """The tokens that each row holds."""
        return self._span.lengths

    @property
    def is_batch(self) -> bool:
        return not isinstance(self.layers[0], _Alone)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.arrays())

    def arrays(self) -> Iterator[mx.array]:
        for cache in self._caches:
            if not cache.empty():
                yield from (part for _, part in tree_flatten(cache.state) if isinstance(part, mx.array))

    def decode(self, model: Decoder, inputs: mx.array) -> mx.array:
        """Logits (R, V) after one token for each row, `inputs` (R,)."""
        counts = [1] * len(self.lengths)
        return self._call(model, inputs[:, None], counts)[:, -1]

    def prefill(self, model: nn.Module, prompts: list[list[int]], queries: int) -> mx.array:
        """Logits (R, queries, V) after tokens for each row, padded behind to `queries`."""
        counts = [len(tokens) for tokens in prompts]
        tokens = mx.array([tokens + [0] * (queries - len(tokens)) for tokens in prompts])
        return self._call(model, tokens, counts)

    def join(self, other: "RowsCache") -> None:
        """Adds rows behind the others."""
        place = len(self.lengths)
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer.join(theirs, place)
        self._span.lengths = self.lengths + other.lengths

    def keep(self, order: list[int]) -> None:
        """Keeps the rows at the places in `order`, in this order."""
        moved = [(place, target) for target, place in enumerate(order) if place != target]
        arrays = (mx.array([one for one, _ in moved]), mx.array([two for _, two in moved])) if moved else None
        for layer in self.layers:
            layer.keep(order, arrays)
        self._span.lengths = [self.lengths[place] for place in order]

    def shrink(self, lengths: Sequence[int]) -> None:
        """Forgets the last tokens of rows, a different number of each. Only for layers in slots."""
        assert all(isinstance(layer, _Slots) for layer in self.layers)
        assert all(now >= then for now, then in zip(self.lengths, lengths, strict=True))
        self._span.lengths = list(lengths)

    def resize(self, slots: int, tokens: int) -> None:
        """Sets the size of the slots."""
        if (self._span.slots, self._span.tokens) != (slots, tokens):
            self._span.slots, self._span.tokens = slots, tokens
            for layer in self.layers:
                layer.resize()

    def row(self, place: int) -> "RowCache":
        return RowCache(self.layers, place, self.lengths[place])

    def single(self, place: int) -> "RowsCache":
        """One row by itself, in views of these arrays."""
        length = self.lengths[place]
        return RowsCache.alone([layer.single(place, length) for layer in self.layers], length)

    def _call(self, model: Decoder, tokens: mx.array, counts: list[int]) -> mx.array:
        span, rows = self._span, len(counts)
        padding = [tokens.shape[1] - count for count in counts]
        span.begin(counts, tokens.shape[1])
        if span.rows > rows:
            tokens = mx.pad(tokens, [(0, span.rows - rows), (0, 0)])
        for layer in self.layers:
            layer.begin(counts, padding)
        logits: mx.array = model(tokens, cache=self._caches)
        for layer in self.layers:
            layer.finish(padding)
        return logits[:rows] if span.rows > rows else logits


@dataclass(frozen=True, slots=True)
class RowCache:
    """One row of a cache, to be copied."""

    layers: list[Layer]
    place: int
    length: int

    def cut(self, layer: Layer, start: int, end: int) -> KeysAndValues:
        keys, values = layer.cut(self.place, start, end)
        return owned_copy(keys), owned_copy(values)

    def snapshot(self, layer: Layer) -> Any:
        single = copy.deepcopy(layer.single(self.place, self.length))
        if type(single).state.fset is None:  # an architecture's own cache whose state cannot be set
            for name, part in vars(single).items():
                setattr(single, name, _owned(part))
        else:
            single.state = tree_map(_owned, single.state)
        return single


def can_batch(layer: Any) -> bool:
    """Whether a batch can hold mlx-lm's cache."""
    return hasattr(layer, "merge") and all(map(can_batch, getattr(layer, "caches", ())))


def _merged(singles: list[Any], span: Span) -> Layer:
    first = singles[0]
    if type(first) is KVCache:
        return _Slots(_slots(singles, span))
    if type(first) is CacheList:
        return _List([_merged(list(parts), span) for parts in zip(*(one.caches for one in singles), strict=True)])
    return _Merged(first.merge(singles))


def _slots(singles: list[KVCache], span: Span) -> SlotsKVCache:
    slots = SlotsKVCache(span)
    if len(singles) == 1 and not singles[0].empty():
        slots.keys, slots.values = singles[0].keys, singles[0].values
        span.tokens = span.tokens or singles[0].keys.shape[2]
        slots.resize()
        return slots
    for place, single in enumerate(singles):
        if not single.empty():
            slots.write_row(place, *single.keys_and_values())
    return slots


def owned_copy(part: mx.array) -> mx.array:
    """A copy, because a view would keep the whole array alive."""
    return mx.contiguous(part)


def _owned(part: Any) -> Any:
    return owned_copy(part) if isinstance(part, mx.array) else part


def bytes_per_token(cache: Cache) -> int:
    """Bytes per token in the layers that grow, measured on a model's cache with one token."""
    return sum(map(_token_bytes, cache))


def bytes_per_row(cache: Cache) -> int:
    """Bytes per row in the layers of fixed size, measured on a model's cache with one token."""
    return sum(map(_row_bytes, cache))


def cut_bytes_per_token(cache: Cache) -> int:
    """Bytes per token in the layers that can be cut at any token, measured on a model's cache with one token."""
    return sum(_token_bytes(layer) for layer in cache if type(layer) is KVCache)


def growing_layers(cache: Cache) -> int:
    """The number of layers that grow with the sequence."""
    return sum(_token_bytes(layer) > 0 for layer in cache)


def _token_bytes(layer: Any) -> int:
    match layer:
        case CacheList():
            return sum(map(_token_bytes, layer.caches))
        case KVCache():
            return int(layer.nbytes // layer.keys.shape[2])
        case ArraysCache() | RotatingKVCache() | ChunkedKVCache():
            return 0
        case _:  # an architecture's own cache, assumed to grow by its size after one token
            return int(layer.nbytes)


def _row_bytes(layer: Any) -> int:
    match layer:
        case CacheList():
            return sum(map(_row_bytes, layer.caches))
        case ArraysCache():
            return int(layer.nbytes)
        case RotatingKVCache():
            return int(layer.nbytes // layer.keys.shape[2] * layer.max_size)
        case ChunkedKVCache():
            return int(layer.nbytes // layer.keys.shape[2] * (layer.chunk_size + GROWTH_TOKENS))
        case _:
            return 0
