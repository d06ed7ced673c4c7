"""Decides which rows of the batch share a model call, and the slots that they get. Knows no arrays.

All rows of a model call have slots of one size, so a long row beside short ones wastes memory and time. Rows of
different lengths are in different groups, if that costs less than to read the weights once more for another group.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace

from mlx_manager.mlx_server.engine.kv_memory import KvMemory
from mlx_manager.mlx_server.engine.plan import GroupEdit, ModelFacts, Move, Resize
from mlx_manager.mlx_server.engine.prompt_queue import Sequence
from mlx_manager.mlx_server.engine.shapes import Shapes, grown

MAX_GROUPS = 8
HYSTERESIS = 2
"""Groups are joined only if padding costs less than a model call divided by this, so that they are not split soon."""


@dataclass(slots=True, eq=False)
class Group:
    number: int
    rows: list[Sequence] = field(default_factory=list)
    slots: int = 0
    tokens: int = 0
    longest: int = 0
    """Tokens that its longest row may hold after the next step."""


class Groups:
    """Rows `join` and `leave`; `fit` follows before each step. `others` are the bytes of all other caches."""

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self._shapes = Shapes(facts.repeats_shapes)
        self._groups: list[Group] = []
        self._edits: list[GroupEdit] = []
        self._count = 0
        self._has_changed = False

    def take_edits(self) -> list[GroupEdit]:
        edits, self._edits = self._edits, []
        return edits

    def measure(self) -> None:
        """Takes the lengths of the rows after a step."""
        for group in self._groups:
            group.longest = max(len(row.tokens) for row in group.rows) + self._facts.tokens_per_step

    def held(self, memory: KvMemory) -> list[int]:
        """Bytes of each group's slots."""
        return [memory.held(len(group.rows), group.slots, group.tokens) for group in self._groups]

    def needed(self, memory: KvMemory, lengths: Iterable[int] = (), others: Many[int] = ()) -> list[int]:
        """Bytes of each group in the smallest slots, when rows of these lengths have joined, beside the `others`."""
        places = [(len(group.rows), group.longest) for group in self._groups]
        for length in lengths:
            self._add(places, length + self._facts.tokens_per_step, memory, others)
        return _bytes(places, memory)

    def join(self, row: Sequence, memory: KvMemory, others: Many[int]) -> int:
        """The group that the row joins."""
        length = len(row.tokens) + self._facts.tokens_per_step
        places = [(len(group.rows), group.longest) for group in self._groups]
        place = self._add(places, length, memory, others)
        if place == len(self._groups):
            self._groups.append(self._new())
        group = self._groups[place]
        group.rows.append(row)
        group.longest = max(group.longest, length)
        self._has_changed = True
        return group.number

    def leave(self, row: Sequence) -> None:
        group = next(group for group in self._groups if row in group.rows)
        group.rows.remove(row)
        if not group.rows:
            self._groups.remove(group)
        else:
            group.longest = max(len(row.tokens) for row in group.rows) + self._facts.tokens_per_step
        self._has_changed = True

    def regroup(self, memory: KvMemory, others: Many[int], stored_bytes: int) -> None:
        """Joins and splits groups, when rows have joined or left, or a group needs longer slots."""
        if self._has_changed or any(group.longest > group.tokens for group in self._groups):
            self._has_changed = False
            left = replace(memory, limit_bytes=memory.limit_bytes - stored_bytes)
            self._join_groups(left, others)
            self._split_groups(left, others)

    def fit(self, memory: KvMemory, others: Many[int], stored_bytes: int) -> None:
        """Gives all groups slots for the next step: with room for more rows, if memory has it beside the `others`."""
        sizes = [self._size(group) for group in self._groups]
        caches = [memory.held(len(group.rows), *size) for group, size in zip(self._groups, sizes, strict=True)]
        if not memory.fits(memory.with_copies([*caches, *others]) + stored_bytes):
            sizes = [(len(group.rows), grown(group.longest)) for group in self._groups]
        for group, (slots, tokens) in zip(self._groups, sizes, strict=True):
            if (group.slots, group.tokens) != (slots, tokens):
                group.slots, group.tokens = slots, tokens
                self._edits.append(Resize(group.number, slots, tokens))

    def _size(self, group: Group) -> tuple[int, int]:
        """Slots and their tokens: what the group has, if it suffices and is not far too large."""
        slots, tokens = self._shapes.slots(len(group.rows)), self._shapes.tokens(group.longest)
        if slots <= group.slots and group.slots <= (slots if self._shapes.repeat else 2 * slots):
            slots = group.slots
        if tokens <= group.tokens <= (tokens if self._shapes.repeat else 2 * tokens):
            tokens = group.tokens
        return slots, tokens

    def _new(self) -> Group:
        self._count += 1
        return Group(self._count)

    def _add(self, places: list[tuple[int, int]], length: int, memory: KvMemory, others: Many[int]) -> int:
        """Adds a row to (rows, longest) of the groups: where it causes the least padding, or in a group of its own."""
        best = min(range(len(places)), key=lambda place: _padding(*places[place], length), default=None)
        if best is not None:
            rows, longest = places[best]
            padded_bytes = _padding(rows, longest, length) * self._facts.bytes_per_token
            joined = [*places[:best], (rows + 1, max(longest, length)), *places[best + 1 :]]
            is_full = len(places) >= MAX_GROUPS or not self._facts.decodes_together
            fits = memory.fits(memory.with_copies([*_bytes(joined, memory), *others]))
            if is_full or (padded_bytes <= self._facts.pass_bytes and fits):
                places[:] = joined
                return best
        places.append((1, length))
        return len(places) - 1

    def _join_groups(self, memory: KvMemory, others: Many[int]) -> None:
        """Joins two groups into one when the padding costs less than a model call."""
        for group in sorted(self._groups, key=lambda group: len(group.rows)):
            for other in self._groups:
                if other is group or not group.rows or not other.rows:
                    continue
                saved_bytes = _best_split([*group.rows, *other.rows])[0] * self._facts.bytes_per_token
                if saved_bytes * HYSTERESIS < self._facts.pass_bytes and self._may_join(group, other, memory, others):
                    self._move(group.rows, group, other)
        self._groups = [group for group in self._groups if group.rows]

    def _may_join(self, group: Group, other: Group, memory: KvMemory, others: Many[int]) -> bool:
        joined = [
            (len(one.rows) + len(group.rows), max(one.longest, group.longest))
            if one is other
            else (len(one.rows), one.longest)
            for one in self._groups
            if one is not group and one.rows
        ]
        return memory.fits(memory.with_copies([*_bytes(joined, memory), *others]))

    def _split_groups(self, memory: KvMemory, others: Many[int]) -> None:
        """Splits a group in two when the padding costs more than a model call, or memory demands it."""
        for group in list(self._groups):
            if len(self._groups) >= MAX_GROUPS or len(group.rows) < 2:
                continue
            saved, short = _best_split(group.rows)
            must = not memory.fits(memory.with_copies([*self.needed(memory), *others]))
            if saved * self._facts.bytes_per_token > self._facts.pass_bytes or (must and saved >= grown(1)):
                long = [row for row in group.rows if row not in short]
                fewer = min(short, long, key=lambda rows: sum(len(row.tokens) for row in rows))
                new = self._new()
                self._groups.append(new)
                self._move(fewer, group, new)

    def _move(self, rows: list[Sequence], source: Group, target: Group) -> None:
        """Moves rows behind the others of a group, which gets slots for them first."""
        source.rows = [row for row in source.rows if row not in rows]
        target.rows = [*target.rows, *rows]
        for group in (source, target):
            if group.rows:
                group.longest = max(len(row.tokens) for row in group.rows) + self._facts.tokens_per_step
        target.slots, target.tokens = max(target.slots, len(target.rows)), max(target.tokens, grown(target.longest))
        self._edits.append(Resize(target.number, target.slots, target.tokens))
        self._edits.append(Move([row.number for row in rows], target.number))


def _best_split(rows: list[Sequence]) -> tuple[int, list[Sequence]]:
    """Tokens of padding that it saves to take the short rows out, and these rows."""
    rows = sorted(rows, key=lambda row: len(row.tokens))
    longest = len(rows[-1].tokens)
    saved, count = max(((longest - len(rows[at - 1].tokens)) * at, at) for at in range(1, len(rows)))
    return saved, rows[:count]


def _padding(rows: int, longest: int, length: int) -> int:
    """Tokens of padding that a row of this length adds to a group."""
    return longest - length if length <= longest else (length - longest) * rows


def _bytes(places: list[tuple[int, int]], memory: KvMemory) -> list[int]:
    """Of groups with (rows, longest)."""
    return [memory.held(rows, rows, grown(longest)) for rows, longest in places]
