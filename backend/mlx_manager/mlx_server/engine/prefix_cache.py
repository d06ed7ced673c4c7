"""KV caches of past prompts and answers, kept for prompts that begin alike: a radix tree over token ids.

A node holds the keys and values of its own tokens only, so what two conversations share is held once. Caches that
cannot be cut at any position (recurrent and sliding-window layers) are held whole, as they are after a node's last
token. What is stored is a copy that MLX has been told to make: it keeps no batch alive, and its bytes are what the
ledger says. Runs in the worker, on the engine's thread.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache

from mlx_manager.mlx_server.engine.kv_cache import Cache, KeysAndValues, RowCache, owned_copy

Tokens = np.ndarray[Any, np.dtype[np.int32]]

WORTH_LOADING_TOKENS = 16
"""Fewer are computed faster than they are looked up."""


@dataclass(slots=True, eq=False)
class _Node:
    """`kv` has the layers that can be cut, `snapshots` the others by their place, if they were taken here."""

    tokens: Tokens
    parent: "_Node | None" = None
    kv: list[KeysAndValues] = field(default_factory=list)
    snapshots: dict[int, Any] | None = None
    children: "dict[int, _Node]" = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        snapshots: list[int] = [snapshot.nbytes for snapshot in (self.snapshots or {}).values()]
        return sum([keys.nbytes + values.nbytes for keys, values in self.kv] + snapshots)


@dataclass(frozen=True, slots=True)
class Match:
    """The first `length` tokens of a prompt are in the nodes of `path`, of the last of them perhaps a part."""

    length: int
    path: tuple[_Node, ...]


class PrefixCache:
    """`match`, `load` and `store`, within `limit_bytes`. The least recently used ends of branches go first."""

    def __init__(self, empty: Cache, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self.hits = 0
        self.cached_tokens = 0
        self.evictions = 0
        self._empty = empty
        self._can_cut = [type(layer) is KVCache for layer in empty]
        self._root = _Node(token_array([]))
        self._by_use: OrderedDict[int, _Node] = OrderedDict()
        """The longest unused first. A node is used when one below it is, and after it: so the first is a leaf."""

    @property
    def needs_snapshots(self) -> bool:
        """Whether a prefix can be taken up only where it was stored, and not anywhere in it."""
        return not all(self._can_cut)

    def match(self, prompt: Sequence[int] | Tokens) -> Match:
        """The longest prefix of all tokens but the last: a prompt's last token is decoded, whatever is known of it."""
        tokens = token_array(prompt)
        node, length, path = self._root, 0, []
        usable = Match(0, ())
        while length < len(tokens) - 1 and (child := node.children.get(int(tokens[length]))) is not None:
            shared = min(
                common_length(child.tokens, tokens[length : length + len(child.tokens)]), len(tokens) - 1 - length
            )
            path.append(child)
            length += shared
            if not self.needs_snapshots or (shared == len(child.tokens) and child.snapshots is not None):
                usable = Match(length, tuple(path))
            if shared < len(child.tokens):
                break
            node = child
        return usable if usable.length >= WORTH_LOADING_TOKENS else Match(0, ())

    def load(self, match: Match) -> Cache:
        """A cache of one row that holds the match, and is the caller's own."""
        if not match.length:
            return copy.deepcopy(self._empty)
        self.hits += 1
        self.cached_tokens += match.length
        self._use(match.path)
        before_last = sum(len(node.tokens) for node in match.path[:-1])
        cache: Cache = []
        kv_layers = zip(*(node.kv for node in match.path), strict=True)
        for place, (empty, can_cut) in enumerate(zip(self._empty, self._can_cut, strict=True)):
            if not can_cut:
                assert match.path[-1].snapshots is not None
                cache.append(copy.deepcopy(match.path[-1].snapshots[place]))
                continue
            *whole, (keys, values) = next(kv_layers)
            end = match.length - before_last
            layer = copy.copy(empty)
            layer.keys = mx.concatenate([*(part[0] for part in whole), keys[:, :, :end]], axis=2)
            layer.values = mx.concatenate([*(part[1] for part in whole), values[:, :, :end]], axis=2)
            layer.offset = match.length
            cache.append(layer)
        return cache

    def store(self, prefix: Sequence[int] | Tokens, source: RowCache) -> None:
        """Keeps the cache of the tokens, all of which `source` holds, and not one more where it cannot be cut."""
        tokens = token_array(prefix)
        if self.limit_bytes <= 0 or not len(tokens):
            return
        path, length = self._walk_and_split(tokens)
        node = path[-1] if path else self._root
        if length < len(tokens):
            kv_layers = [layer for layer, can_cut in zip(source.layers, self._can_cut, strict=True) if can_cut]
            leaf = _Node(tokens[length:], node, [source.cut(layer, length, len(tokens)) for layer in kv_layers])
            if leaf.nbytes > self.limit_bytes:
                return
            node.children[int(leaf.tokens[0])] = leaf
            self.nbytes += leaf.nbytes
            self._by_use[id(leaf)] = leaf
            path.append(leaf)
            node = leaf
        if self.needs_snapshots and node.snapshots is None:
            node.snapshots = {
                place: source.snapshot(layer)
                for place, (layer, can_cut) in enumerate(zip(source.layers, self._can_cut, strict=True))
                if not can_cut
            }
            self.nbytes += sum(snapshot.nbytes for snapshot in node.snapshots.values())
        self._use(tuple(path))
        self.shrink(self.limit_bytes)  # before the copies are made: what goes makes room for them
        _start_copies(node)

    def shrink(self, nbytes: int) -> None:
        """Gives up what was not used for longest until no more than `nbytes` are held."""
        while self.nbytes > max(nbytes, 0):
            _, node = self._by_use.popitem(last=False)
            assert node.parent is not None
            del node.parent.children[int(node.tokens[0])]
            self.nbytes -= node.nbytes
            self.evictions += 1

    def _walk_and_split(self, tokens: Tokens) -> tuple[list[_Node], int]:
        """The nodes that hold the first `length` tokens, the last of them cut where the tokens leave it."""
        node, length, path = self._root, 0, []
        while length < len(tokens) and (child := node.children.get(int(tokens[length]))) is not None:
            shared = common_length(child.tokens, tokens[length : length + len(child.tokens)])
            if shared < len(child.tokens):
                child = self._split(child, shared)
            path.append(child)
            length += shared
            node = child
        return path, length

    def _split(self, node: _Node, at: int) -> _Node:
        """Puts a new node with the first `at` tokens above the node, which keeps the rest."""
        assert node.parent is not None
        upper = _Node(
            node.tokens[:at], node.parent, [(owned_copy(k[:, :, :at]), owned_copy(v[:, :, :at])) for k, v in node.kv]
        )
        node.parent.children[int(upper.tokens[0])] = upper
        node.parent, node.tokens = upper, node.tokens[at:]
        node.kv = [(owned_copy(k[:, :, at:]), owned_copy(v[:, :, at:])) for k, v in node.kv]
        upper.children[int(node.tokens[0])] = node
        self._by_use[id(upper)] = upper
        _start_copies(upper)
        _start_copies(node)
        return upper

    def _use(self, path: tuple[_Node, ...]) -> None:
        for node in reversed(path):
            self._by_use.move_to_end(id(node))


def token_array(tokens: Sequence[int] | Tokens) -> Tokens:
    return np.asarray(tokens, dtype=np.int32)


def common_length(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    shorter = min(len(one), len(other))
    differs = one[:shorter] != other[:shorter]
    return int(differs.argmax()) if differs.any() else shorter


def _start_copies(node: _Node) -> None:
    snapshots = [tree_flatten(snapshot.state) for snapshot in (node.snapshots or {}).values()]
    mx.async_eval(node.kv, [part for flat in snapshots for _, part in flat if isinstance(part, mx.array)])  # type: ignore[no-untyped-call]
