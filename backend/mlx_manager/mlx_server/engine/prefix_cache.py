"""The arrays of stored prefixes: KV caches of past prompts and answers, by node number. Makes no decisions.

A node holds the keys and values of its own tokens in the layers that can be cut, and copies of the other layers after
its last token. Stored arrays are copies in evaluation, so they keep no batch alive. `prefix_tree.py` decides what to
keep, split and evict. Runs in the worker, on the engine's thread.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache

from mlx_manager.mlx_server.engine.disk_cache import DiskCache
from mlx_manager.mlx_server.engine.kv_cache import Cache, KeysAndValues, RowCache, owned_copy
from mlx_manager.mlx_server.engine.plan import NodeSize, Prefix, Restore, Spill, Split, Store


@dataclass(slots=True, eq=False)
class _Stored:
    """`kv` has the layers that can be cut, `snapshots` the others by layer index, if they were stored here."""

    kv: list[KeysAndValues]
    snapshots: dict[int, Any] | None = None

    @property
    def tokens(self) -> int:
        return int(self.kv[0][0].shape[2]) if self.kv else 0


class PrefixCache:
    """Keeps, splits, evicts and loads nodes."""

    def __init__(self, empty: Cache) -> None:
        self._empty = empty
        self._can_cut = [type(layer) is KVCache for layer in empty]
        self._nodes: dict[int, _Stored] = {}

    @property
    def needs_snapshots(self) -> bool:
        """Whether a prefix is usable only up to the end of a node with a snapshot."""
        return not all(self._can_cut)

    def store(self, edit: Store, source: RowCache) -> None:
        node = self._nodes.get(edit.node)
        if node is None:
            kv_layers = [layer for layer, can_cut in zip(source.layers, self._can_cut, strict=True) if can_cut]
            node = self._nodes[edit.node] = _Stored([source.cut(layer, edit.start, edit.end) for layer in kv_layers])
        if edit.snapshot:
            node.snapshots = {
                place: source.snapshot(layer)
                for place, (layer, can_cut) in enumerate(zip(source.layers, self._can_cut, strict=True))
                if not can_cut
            }
        _start_copies(node)

    def split(self, edit: Split) -> None:
        lower, at = self._nodes[edit.node], edit.at
        upper = _Stored([(owned_copy(k[:, :, :at]), owned_copy(v[:, :, :at])) for k, v in lower.kv])
        lower.kv = [(owned_copy(k[:, :, at:]), owned_copy(v[:, :, at:])) for k, v in lower.kv]
        self._nodes[edit.upper] = upper
        _start_copies(upper)
        _start_copies(lower)

    def spill(self, edit: Spill, disk: DiskCache) -> None:
        """Starts to write the block to disk."""
        path, first, left = [self._nodes[number] for number in edit.nodes], edit.skip, len(edit.block.tokens)
        parts: list[list[KeysAndValues]] = []
        for node in path:
            last = min(node.tokens, first + left)
            parts.append([(keys[:, :, first:last], values[:, :, first:last]) for keys, values in node.kv])
            left -= last - first
            first = 0
        disk.spill(edit.block, list(map(_joined, zip(*parts, strict=True))), _copies(path[-1], edit.block.is_end))

    def restore(self, edit: Restore, disk: DiskCache) -> None:
        kv, snapshots = disk.restored(edit.name, edit.skip, self._empty)
        node = self._nodes.setdefault(edit.node, _Stored(kv))
        if edit.snapshot:
            node.snapshots = snapshots
        _start_copies(node)

    def evict(self, node: int) -> None:
        del self._nodes[node]

    def sizes(self, nodes: Sequence[int]) -> list[NodeSize]:
        """Sizes of the nodes that are still stored."""
        return [_size(number, self._nodes[number]) for number in nodes if number in self._nodes]

    def load(self, prefix: Prefix | None) -> Cache:
        """A new cache of one row that holds the prefix."""
        if prefix is None:
            return copy.deepcopy(self._empty)
        path = [self._nodes[number] for number in prefix.nodes]
        in_last = prefix.length - sum(node.tokens for node in path[:-1])
        kv_layers = zip(*(node.kv for node in path), strict=True)
        cache: Cache = []
        for place, (empty, can_cut) in enumerate(zip(self._empty, self._can_cut, strict=True)):
            if not can_cut:
                snapshots = path[-1].snapshots
                assert snapshots is not None
                cache.append(copy.deepcopy(snapshots[place]))
                continue
            *whole, (keys, values) = next(kv_layers)
            layer = copy.copy(empty)
            layer.keys = mx.concatenate([*(part[0] for part in whole), keys[:, :, :in_last]], axis=2)
            layer.values = mx.concatenate([*(part[1] for part in whole), values[:, :, :in_last]], axis=2)
            layer.offset = prefix.length
            cache.append(layer)
        return cache


def _copies(node: _Stored, wanted: bool) -> dict[int, Any]:
    return node.snapshots if wanted and node.snapshots is not None else {}


def _joined(parts: Sequence[KeysAndValues]) -> KeysAndValues:
    """The parts of one layer in one array each for keys and values."""
    if len(parts) == 1:
        ((keys, values),) = parts
        return owned_copy(keys), owned_copy(values)
    return mx.concatenate([keys for keys, _ in parts], axis=2), mx.concatenate([values for _, values in parts], axis=2)


def _size(number: int, node: _Stored) -> NodeSize:
    snapshots: list[int] = [snapshot.nbytes for snapshot in (node.snapshots or {}).values()]
    return NodeSize(number, sum(keys.nbytes + values.nbytes for keys, values in node.kv), sum(snapshots))


def _start_copies(node: _Stored) -> None:
    snapshots = [tree_flatten(snapshot.state) for snapshot in (node.snapshots or {}).values()]
    mx.async_eval(node.kv, [part for flat in snapshots for _, part in flat if isinstance(part, mx.array)])  # type: ignore[no-untyped-call]
