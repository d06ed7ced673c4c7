"""Decides which prefixes go to disk and come back. Knows names, lengths and rates; no files and no arrays.

A part of the scheduler. It writes prefixes before they are evicted, when the engine is idle, and when it closes: one
block in a step, so that streams go on. A prompt waits for its blocks only if reading them is faster than computing
them. Each step restores a few blocks into the tree (`prefix_tree.py`).
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlx_manager.mlx_server.engine.disk_format import chain, end_name, end_parts
from mlx_manager.mlx_server.engine.plan import (
    BLOCK_TOKENS,
    Block,
    Discard,
    DiskEvent,
    DiskFailed,
    Listed,
    ModelFacts,
    Read,
    Spill,
    WasRead,
    Written,
)
from mlx_manager.mlx_server.engine.prefix_tree import MIN_MATCH_TOKENS, Node, PrefixTree, Tokens

IDLE_SECONDS = 5.0
MAX_WRITING = 2
"""Blocks that are written at a time. Their arrays are copies beside the memory of the prefix cache."""
READ_BYTES = 2**26
"""Blocks are read while those that wait in memory for their step are smaller than this."""
RESTORED_BYTES = 2**23
"""A step restores a block, and more up to this size."""
FULL_SHARE = 0.5
"""The prefix cache writes what it would evict next once it is this full."""
SECONDS_PER_BYTE = 1e-9
"""Of reading, before it is measured."""


@dataclass(slots=True)
class DiskFigures:
    """Since the model was loaded. `hits` counts prompts with blocks from disk, `tokens` their tokens."""

    nbytes: int = 0
    """Of the model's files now."""
    hits: int = 0
    tokens: int = 0
    read_bytes: int = 0
    read_seconds: float = 0.0
    written_bytes: int = 0
    written_seconds: float = 0.0
    fault: str = ""
    """Why the tier is off; empty otherwise."""


@dataclass(frozen=True, slots=True)
class _Reading:
    block: Block
    prefix: Tokens
    """The prompt up to the block's end."""
    nbytes: int


class DiskTier:
    def __init__(self, prefixes: PrefixTree, facts: ModelFacts) -> None:
        self.figures = DiskFigures()
        self.reading: dict[str, _Reading] = {}
        """Blocks that prompts wait for, by name."""
        self._salt = facts.disk_salt
        self._cut_bytes = facts.cut_bytes_per_token
        self._prefixes = prefixes
        self._sizes: dict[str, int] = {}
        """Of the blocks on disk, by name."""
        self._ends: defaultdict[str, set[str]] = defaultdict(set)
        """The ends on disk by their parent's name."""
        self._to_read: deque[str] = deque()
        self._read_bytes = 0
        """Of the blocks that are read, or wait to be restored."""
        self._arrived: deque[tuple[str, bool]] = deque()
        """Names in the order of `reading`, and whether they could be read."""
        self._writing: set[str] = set()
        self._spills: Iterator[Spill] = iter(())
        self._spills_are_for: tuple[int, bool, int] | None = None
        """The state of the prefix cache for which `_spills` was chosen."""
        self._has_spills = False
        self._seconds_per_byte = SECONDS_PER_BYTE
        self._busy_at = 0.0
        self._is_closing = False

    @property
    def has_work(self) -> bool:
        return bool(self.reading) or self._has_spills

    @property
    def is_writing(self) -> bool:
        return bool(self._writing) or self._has_spills

    def plan(self, now: float, is_busy: bool) -> None:
        """Adds edits for the next step."""
        if not self._salt:
            return
        self._restore()
        self._read()
        if is_busy:
            self._busy_at = now
        if len(self._writing) < MAX_WRITING:
            is_idle = self._is_closing or now - self._busy_at >= IDLE_SECONDS
            spill = self._next_spill(is_idle)
            self._has_spills = spill is not None
            if spill is not None:
                self._writing.add(spill.block.name)
                self._prefixes.edit(spill)

    def close(self) -> None:
        """The next steps write what is not on disk, the most recently used first."""
        self._is_closing = True
        self._spills_are_for = None
        for node in self._prefixes.nodes():
            node.is_on_disk = False

    def note(self, event: DiskEvent) -> None:
        figures = self.figures
        match event:
            case Listed(sizes):
                self._learn(sizes)
            case Written(name, nbytes, seconds):
                self._writing.discard(name)
                self._learn_one(name, nbytes)
                figures.written_bytes += nbytes
                figures.written_seconds += seconds
            case WasRead(name, nbytes, seconds):
                self._arrived.append((name, nbytes > 0))
                figures.read_bytes += nbytes
                figures.read_seconds += seconds
                if nbytes:
                    self._seconds_per_byte = (self._seconds_per_byte + seconds / nbytes) / 2
                else:
                    self._forget(name)
            case DiskFailed(fault):
                self.figures.fault, self._salt = fault, ""
                self.reading.clear()
                self._to_read.clear()
                self._writing.clear()
                self._has_spills = False

    def request(self, prompt: Tokens, seconds_per_token: float | None) -> str:
        """Starts to read the prompt's blocks if that is faster than to compute them.

        Returns the name of the last one: the prompt waits while it is in `reading`.
        """
        if not self._salt or not self._sizes:
            return ""
        matched = self._prefixes.match(prompt).length
        blocks = self._blocks_for(prompt, matched)
        gained = min(blocks[-1].end, len(prompt) - 1) - matched if blocks else 0
        if gained < MIN_MATCH_TOKENS:
            return ""
        read_seconds = self._seconds_per_byte * sum(self._sizes[block.name] for block in blocks)
        if seconds_per_token is not None and read_seconds >= gained * seconds_per_token:
            return ""
        for block in blocks:
            if block.name not in self.reading:
                self.reading[block.name] = _Reading(block, prompt[: block.end], self._sizes[block.name])
                self._to_read.append(block.name)
        self.figures.hits += 1
        return blocks[-1].name

    def _blocks_for(self, prompt: Tokens, matched: int) -> list[Block]:
        """The blocks on disk that lengthen the match, in order; no more than fit into the prefix cache."""
        room_bytes = min(self._prefixes.limit_bytes, self._prefixes.room_bytes)
        prompt = prompt[: room_bytes // self._cut_bytes] if self._cut_bytes else prompt
        first = self._prefixes.held(prompt) // BLOCK_TOKENS if self._cut_bytes else 0
        names = [self._salt, *chain(self._salt, prompt)]
        blocks: list[Block] = []
        longest: list[Block] = []
        for place in range(first, len(names)):
            start = place * BLOCK_TOKENS
            end = self._end_for(prompt, matched, names[place], start) if self._prefixes.needs_snapshots else None
            if end is not None:
                longest = [*blocks, end]
            if place + 1 == len(names) or (self._cut_bytes and names[place + 1] not in self._sizes):
                break
            if self._cut_bytes:
                tokens = prompt[start : start + BLOCK_TOKENS].tolist()
                blocks.append(Block(names[place + 1], names[place], start, tokens))
        return longest if self._prefixes.needs_snapshots else blocks

    def _end_for(self, prompt: Tokens, matched: int, parent: str, start: int) -> Block | None:
        """The longest end on disk after the block `parent` that the prompt goes on with."""
        best = None
        for name in self._ends.get(parent, ()):
            parts = end_parts(name)
            end = start + parts[1] if parts is not None else 0
            longest = best.end if best is not None else matched
            if longest < end < len(prompt) and end_name(parent, prompt[start:end]) == name:
                best = Block(name, parent, start, prompt[start:end].tolist(), is_end=True)
        return best

    def _read(self) -> None:
        while self._to_read and self._read_bytes < READ_BYTES:
            reading = self.reading[self._to_read.popleft()]
            self._read_bytes += reading.nbytes
            self._prefixes.edit(Read(reading.block))

    def _restore(self) -> None:
        """Stores blocks that were read in the tree, a few at a time."""
        restored_bytes = 0
        while self._arrived and restored_bytes < RESTORED_BYTES:
            name, is_read = self._arrived.popleft()
            reading = self.reading.pop(name)
            self._read_bytes -= reading.nbytes
            if not is_read:
                continue
            block = reading.block
            if self._prefixes.restore(reading.prefix, block.start, name, block.is_end):
                self.figures.tokens += len(block.tokens)
                restored_bytes += reading.nbytes
            else:
                self._prefixes.edit(Discard(name))

    def _next_spill(self, is_idle: bool) -> Spill | None:
        """The next block to write: of any prefix when idle, else only of those that would be evicted next."""
        prefixes = self._prefixes
        most_bytes = max(1, min(prefixes.limit_bytes, prefixes.room_bytes))
        over_bytes = max(0, prefixes.nbytes - int(most_bytes * FULL_SHARE))
        state = (prefixes.version, is_idle, 20 * over_bytes // most_bytes)
        if self._spills_are_for != state:
            self._spills_are_for = state
            nodes = prefixes.nodes(None if is_idle else over_bytes)
            self._spills = self._spills_of(nodes[::-1] if self._is_closing else nodes)
        return next(self._spills, None)

    def _spills_of(self, nodes: list[Node]) -> Iterator[Spill]:
        for node in nodes:
            if node.is_on_disk or not node.is_spillable or not self._prefixes.is_stored(node):
                continue
            path = node.path
            for block in self._blocks_of(path):
                if block.name not in self._sizes and block.name not in self._writing:
                    yield _spill(block, path)
            node.is_on_disk = True

    def _blocks_of(self, path: list[Node]) -> Iterator[Block]:
        """The blocks that end in the last node of `path`, whole ones first."""
        tokens = np.concatenate([node.tokens for node in path])
        begin = len(tokens) - len(path[-1].tokens)
        names = [self._salt, *chain(self._salt, tokens)]
        if self._cut_bytes:
            for place in range(begin // BLOCK_TOKENS, len(names) - 1):
                start = place * BLOCK_TOKENS
                part = tokens[start : start + BLOCK_TOKENS].tolist()
                yield Block(names[place + 1], names[place], start, part)
        if path[-1].has_snapshot:
            start = (len(names) - 1) * BLOCK_TOKENS
            rest = tokens[start:]
            yield Block(end_name(names[-1], rest), names[-1], start, rest.tolist(), is_end=True)

    def _learn(self, sizes: dict[str, int]) -> None:
        """The folder's contents: other servers write to it, and the budget removes files.

        Stored nodes whose files were removed are not written again before the end: with more prefixes in memory than
        the budget allows on disk, that would never end.
        """
        self._sizes = {}
        self._ends.clear()
        self.figures.nbytes = 0
        for name, nbytes in sizes.items():
            self._learn_one(name, nbytes)

    def _learn_one(self, name: str, nbytes: int) -> None:
        self.figures.nbytes += nbytes - self._sizes.get(name, 0)
        self._sizes[name] = nbytes
        parts = end_parts(name)
        if parts is not None:
            self._ends[parts[0]].add(name)

    def _forget(self, name: str) -> None:
        self.figures.nbytes -= self._sizes.pop(name, 0)
        parts = end_parts(name)
        if parts is not None:
            self._ends[parts[0]].discard(name)


def _spill(block: Block, path: list[Node]) -> Spill:
    """Finds the nodes that hold the block's tokens."""
    start = 0
    for place, node in enumerate(path):
        if start + len(node.tokens) > block.start or place == len(path) - 1:
            return Spill(block, [node.number for node in path[place:]], block.start - start)
        start += len(node.tokens)
    raise AssertionError("a prefix has nodes")
