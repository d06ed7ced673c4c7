"""Operations on mlx-lm's caches: merge rows, copy a part of a row, and measure memory. Knows no sequences.

Runs in the worker, on the engine's thread.
"""

import copy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import ArraysCache, BatchKVCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache

Cache = list[Any]
"""mlx-lm's caches of all layers, for one row or a batch."""
KeysAndValues = tuple[mx.array, mx.array]
"""Of one layer, each (1, H, T, D)."""

GROWTH_TOKENS: int = KVCache.step
"""Caches grow in steps of this many tokens."""


class RowsKVCache(BatchKVCache):  # type: ignore[misc]
    """mlx-lm's BatchKVCache, without the mask that a single row does not need: it decodes 5 % faster."""

    def make_mask(self, N: int, return_array: bool = False, **options: Any) -> mx.array | None:
        if N == 1 and self.left_padding.shape[0] == 1 and not return_array and not options.get("window_size"):
            return None
        mask: mx.array = super().make_mask(N, return_array=return_array, **options)
        return mask


def merge(rows: list[Cache]) -> Cache:
    """Merges caches of one row each into the cache of a batch."""
    return [
        (RowsKVCache if type(layers[0]) is KVCache else layers[0]).merge(list(layers))
        for layers in zip(*rows, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class RowCache:
    """One row of a batch's cache, or a cache with one row. `padding` tokens precede the row's own."""

    layers: Cache
    row: int = 0
    padding: int = 0
    is_batch: bool = False

    @classmethod
    def of_batch(cls, layers: Cache, row: int, length: int) -> "RowCache":
        """The row has `length` tokens, which end where the batch ends."""
        end = next((layer._idx for layer in layers if isinstance(layer, BatchKVCache)), length)
        return cls(layers, row, end - length, is_batch=True)

    def cut(self, layer: Any, start: int, end: int) -> KeysAndValues:
        row, first, last = slice(self.row, self.row + 1), self.padding + start, self.padding + end
        return owned_copy(layer.keys[row, :, first:last]), owned_copy(layer.values[row, :, first:last])

    def snapshot(self, layer: Any) -> Any:
        single = layer.extract(self.row) if self.is_batch else copy.deepcopy(layer)
        if type(single).state.fset is None:  # an architecture's own cache whose state cannot be set
            for name, part in vars(single).items():
                setattr(single, name, _owned(part))
        else:
            single.state = tree_map(_owned, single.state)
        return single


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
