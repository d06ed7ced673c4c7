"""The index of stored prefixes: a radix tree over token ids with the size and last use of each node. Knows no arrays.

A node has only its own tokens, so a shared prefix is stored once. Some layers cannot be cut at any token (recurrent and
sliding-window ones); with those, a prefix is usable only at the end of a node with a snapshot of them. The tree records
every change as an edit, and the next plan carries the edits to the runner, which holds the arrays (`prefix_cache.py`).
It also remembers the token ids of evicted prefixes, to tell a prompt that was evicted from a new one.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_manager.mlx_server.engine.plan import Edit, Evict, ModelFacts, NodeSize, Prefix, Restore, Split, Store

Tokens = np.ndarray[Any, np.dtype[np.int32]]

MIN_MATCH_TOKENS = 16
"""Shorter prefixes are computed faster than they are loaded."""
EVICTED_BYTES = 2**22
"""Limit of the token ids of evicted prefixes, with the overhead of their nodes."""
_IDS_ONLY = ModelFacts(0, True, True, 16, 0, 16, needs_snapshots=False)
"""An evicted token as 16 bytes: the id takes 4, and a node of 30 tokens takes the rest."""
MIN_SPILL_TOKENS = 1024
"""Only prefixes of this length, or that two sequences had, are written to disk."""


@dataclass(slots=True, eq=False)
class Node:
    number: int
    tokens: Tokens
    parent: "Node | None" = None
    cut_bytes: int = 0
    snapshot_bytes: int = 0
    has_snapshot: bool = False
    is_stored: bool = False
    """Whether an edit has stored it in the runner."""
    is_remembered: bool = False
    """Whether an evicted child has left the tokens up to the end of this node among the evicted prefixes."""
    first_sequence: int | None = None
    """The first sequence with this prefix that may be written to disk."""
    is_spillable: bool = False
    """Whether it is worth writing to disk, and allowed."""
    is_on_disk: bool = False
    children: "dict[int, Node]" = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return self.cut_bytes + self.snapshot_bytes

    @property
    def path(self) -> "list[Node]":
        """The nodes of the whole prefix, this one last."""
        above = self.parent.path if self.parent is not None and self.parent.parent is not None else []
        return [*above, self]


@dataclass(frozen=True, slots=True)
class Match:
    """`path` holds the first `length` tokens of a prompt; its last node may match in part.

    The prompt leaves the stored prefixes after `shared` tokens. Not all of these are usable.
    """

    length: int
    path: tuple[Node, ...]
    shared: int = 0

    @property
    def prefix(self) -> Prefix:
        return Prefix([node.number for node in self.path], self.length)


NO_MATCH = Match(0, ())


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a prefix is stored: its tokens from `start` on are in `node`. `snapshot`: the node had none before."""

    node: Node
    start: int
    snapshot: bool
    has_news: bool
    """Whether the node is new, or new to have a snapshot, and still stored."""


class PrefixTree:
    """Matches and stores prefixes within `limit_bytes`. Evicts the least recently used leaves first."""

    def __init__(self, facts: ModelFacts, limit_bytes: int, evicted_bytes: int = EVICTED_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.room_bytes = limit_bytes
        """Memory that running sequences leave free."""
        self.nbytes = 0
        self.hits = 0
        self.cached_tokens = 0
        self.evictions = 0
        self.version = 0
        """Changes whenever the match of a prompt may change."""
        self.needs_snapshots = facts.needs_snapshots
        self.kept_off_disk: set[int] = set()
        """Sequences whose prefixes must not be written to disk."""
        self._facts = facts
        self._edits: list[Edit] = []
        self._nodes = 0
        self._root = self._new_node(token_array([]), None)
        self._by_use: OrderedDict[int, Node] = OrderedDict()
        """Least recently used first. Using a node also uses its ancestors, after it: so the first is a leaf."""
        self._evicted = PrefixTree(_IDS_ONLY, evicted_bytes, 0) if evicted_bytes > 0 else None

    def take_edits(self) -> list[Edit]:
        """The changes since the last call, in order, for the runner."""
        edits, self._edits = self._edits, []
        return edits

    @property
    def has_edits(self) -> bool:
        return bool(self._edits)

    def match(self, prompt: Sequence[int] | Tokens) -> Match:
        """The longest stored prefix of the prompt, excluding its last token, which is always decoded."""
        tokens = token_array(prompt)
        node, length, path = self._root, 0, []
        usable = NO_MATCH
        while length < len(tokens) - 1 and (child := node.children.get(int(tokens[length]))) is not None:
            shared = min(
                common_length(child.tokens, tokens[length : length + len(child.tokens)]), len(tokens) - 1 - length
            )
            path.append(child)
            length += shared
            if not self.needs_snapshots or (shared == len(child.tokens) and child.has_snapshot):
                usable = Match(length, tuple(path))
            if shared < len(child.tokens):
                break
            node = child
        if usable.length < MIN_MATCH_TOKENS:
            usable = NO_MATCH
        return Match(usable.length, usable.path, length)

    def evicted_length(self, prompt: Tokens) -> int:
        """Length of the longest prefix of the prompt that was evicted, as far as the tree remembers."""
        return self._evicted.match(prompt).shared if self._evicted is not None else 0

    def use(self, match: Match) -> None:
        """Counts a hit, and marks its nodes as used."""
        if match.length:
            self.hits += 1
            self.cached_tokens += match.length
            self._use(match.path)

    def held(self, tokens: Tokens) -> int:
        """How many of the first tokens are in nodes, with or without snapshots."""
        node, length = self._root, 0
        while length < len(tokens) and (child := node.children.get(int(tokens[length]))) is not None:
            shared = common_length(child.tokens, tokens[length : length + len(child.tokens)])
            length += shared
            if shared < len(child.tokens):
                break
            node = child
        return length

    def store(self, prefix: Sequence[int] | Tokens, sequence: int) -> None:
        """Stores the cache of `prefix`, from a sequence whose cache holds it (exactly it, if layers cannot be cut)."""
        tokens = token_array(prefix)
        place = self._place(tokens, 0, self.needs_snapshots)
        if place is None:
            self._remember(tokens)
            return
        if sequence not in self.kept_off_disk:
            _mark_spillable(place.node.path, sequence, len(tokens) >= MIN_SPILL_TOKENS)
        if place.has_news:
            self._edits.append(Store(place.node.number, sequence, place.start, len(tokens), place.snapshot))

    def restore(self, prefix: Tokens, start: int, name: str, snapshot: bool) -> bool:
        """Stores the block `name` from disk, which holds `prefix` from `start` on. Returns whether it is of use."""
        place = self._place(prefix, start, snapshot)
        if place is None or not place.has_news:
            return False
        place.node.is_spillable = place.node.is_on_disk = True
        self._edits.append(Restore(place.node.number, name, place.start - start, place.snapshot))
        return True

    def edit(self, edit: Edit) -> None:
        """Adds an edit that changes no node."""
        self._edits.append(edit)

    def nodes(self, coldest_bytes: int | None = None) -> list[Node]:
        """The nodes in the order of eviction; with `coldest_bytes` only the first ones, which have as many bytes."""
        if coldest_bytes is None:
            return list(self._by_use.values())
        coldest: list[Node] = []
        for node in self._by_use.values():
            if coldest_bytes <= 0:
                break
            coldest.append(node)
            coldest_bytes -= node.nbytes
        return coldest

    def is_stored(self, node: Node) -> bool:
        """Whether the node is stored now: it may have been evicted."""
        return node.is_stored and node.number in self._by_use

    def _place(self, tokens: Tokens, start: int, snapshot: bool) -> "_Place | None":
        """The node for the end of `tokens`. The caller has the part from `start` on. None if there is no room."""
        most = min(self.limit_bytes, self.room_bytes)
        if most <= 0 or not len(tokens):
            return None
        path, length = self._walk_and_split(tokens)
        if length < start and self._facts.cut_bytes_per_token:
            return None
        node = path[-1] if path else self._root
        is_new = length < len(tokens)
        if is_new:
            node = self._new_node(tokens[length:], node)
            node.cut_bytes = len(node.tokens) * self._facts.cut_bytes_per_token
            if node.nbytes > most:
                return None
            self._insert(node)
            path.append(node)
        snapshot = snapshot and not node.has_snapshot
        if snapshot:
            node.has_snapshot, node.is_on_disk = True, False
            node.snapshot_bytes = self._estimated_snapshot_bytes(len(tokens))
            self.nbytes += node.snapshot_bytes
        self._use(tuple(path))
        self.shrink(most)  # before the copies are made, to free memory for them
        has_news = (is_new or snapshot) and node.number in self._by_use
        if has_news:
            self.version += 1
            node.is_stored = True
        return _Place(node, length, snapshot, has_news)

    def shrink(self, nbytes: int) -> None:
        """Evicts the least recently used nodes until at most `nbytes` are held."""
        while self.nbytes > max(nbytes, 0):
            number, node = self._by_use.popitem(last=False)
            assert node.parent is not None
            del node.parent.children[int(node.tokens[0])]
            self.nbytes -= node.nbytes
            self.version += 1
            self._remember_node(node, node.parent)
            if node.is_stored:
                self.evictions += 1
                self._edits.append(Evict(number))

    def correct(self, size: NodeSize) -> None:
        """Sets the size that the runner measured; until then, the size of a snapshot is an estimate."""
        node = self._by_use.get(size.node)
        if node is not None:
            self.nbytes += size.cut_bytes + size.snapshot_bytes - node.nbytes
            node.cut_bytes, node.snapshot_bytes = size.cut_bytes, size.snapshot_bytes
            self.shrink(min(self.limit_bytes, self.room_bytes))

    def _remember_node(self, node: Node, parent: Node) -> None:
        if self._evicted is not None and not node.is_remembered:
            self._remember(_tokens_to(node))
        parent.is_remembered = True

    def _remember(self, tokens: Tokens) -> None:
        if self._evicted is not None and self.limit_bytes > 0:
            self._evicted.store(tokens, sequence=0)
            self._evicted.take_edits()

    def _estimated_snapshot_bytes(self, length: int) -> int:
        facts = self._facts
        return facts.bytes_per_row + (facts.bytes_per_token - facts.cut_bytes_per_token) * length

    def _new_node(self, tokens: Tokens, parent: Node | None) -> Node:
        self._nodes += 1
        return Node(self._nodes, tokens, parent)

    def _insert(self, leaf: Node) -> None:
        assert leaf.parent is not None
        leaf.parent.children[int(leaf.tokens[0])] = leaf
        self.nbytes += leaf.nbytes
        self._by_use[leaf.number] = leaf

    def _walk_and_split(self, tokens: Tokens) -> tuple[list[Node], int]:
        """The nodes that hold the first `length` tokens. Splits the last node where the tokens diverge."""
        node, length, path = self._root, 0, []
        while length < len(tokens) and (child := node.children.get(int(tokens[length]))) is not None:
            shared = common_length(child.tokens, tokens[length : length + len(child.tokens)])
            if shared < len(child.tokens):
                child = self._split(child, shared)
            path.append(child)
            length += shared
            node = child
        return path, length

    def _split(self, node: Node, at: int) -> Node:
        """Moves the first `at` tokens of the node into a new parent."""
        assert node.parent is not None
        upper = self._new_node(node.tokens[:at], node.parent)
        upper.cut_bytes = node.cut_bytes // len(node.tokens) * at
        upper.is_stored, upper.first_sequence = True, node.first_sequence
        upper.is_spillable, upper.is_on_disk = node.is_spillable, node.is_on_disk
        node.parent.children[int(upper.tokens[0])] = upper
        node.parent, node.tokens = upper, node.tokens[at:]
        node.cut_bytes -= upper.cut_bytes
        upper.children[int(node.tokens[0])] = node
        self._by_use[upper.number] = upper
        self.version += 1
        self._edits.append(Split(node.number, upper.number, at))
        return upper

    def _use(self, path: tuple[Node, ...]) -> None:
        for node in reversed(path):
            self._by_use.move_to_end(node.number)


def _tokens_to(node: Node) -> Tokens:
    """The tokens from the root to the end of the node."""
    parts = [node.tokens]
    while node.parent is not None:
        node = node.parent
        parts.append(node.tokens)
    return np.concatenate(parts[::-1])


def _mark_spillable(path: list[Node], sequence: int, is_long: bool) -> None:
    for node in path:
        if node.first_sequence is None:
            node.first_sequence = sequence
        node.is_spillable |= is_long or node.first_sequence != sequence


def token_array(tokens: Sequence[int] | Tokens) -> Tokens:
    return np.asarray(tokens, dtype=np.int32)


def common_length(one: Tokens, other: Tokens) -> int:
    """Length of the common prefix."""
    shorter = min(len(one), len(other))
    differs = one[:shorter] != other[:shorter]
    return int(differs.argmax()) if differs.any() else shorter
