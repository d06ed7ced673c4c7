"""Plays traffic to the scheduler without MLX.

The runner has no model. It checks every plan, and a cost model gives the seconds that each takes.
"""

import collections
import heapq
import itertools
import random
from dataclasses import dataclass, field

import msgspec

from mlx_manager.mlx_server.engine.kv_memory import KvMemory
from mlx_manager.mlx_server.engine.messages import (
    Admitted,
    Cancel,
    Limits,
    Prefilled,
    RequestFailed,
    RequestFinished,
    Step,
    Submit,
    UpMessage,
)
from mlx_manager.mlx_server.engine.plan import (
    Block,
    Chunk,
    Compiled,
    Discard,
    DiskEvent,
    Edit,
    Evict,
    Failed,
    GroupEdit,
    Listed,
    ModelFacts,
    Move,
    NodeSize,
    Outcome,
    Plan,
    Read,
    Resize,
    Restore,
    Spill,
    Split,
    Store,
    WasRead,
    Written,
)
from mlx_manager.mlx_server.engine.scheduler import Scheduler
from mlx_manager.mlx_server.types import SamplingParams

VOCABULARY = 1000
END = 7
LLAMA = ModelFacts(VOCABULARY, True, True, 100, 0, 100, needs_snapshots=False, growing_layers=8)
RECURRENT = ModelFacts(VOCABULARY, True, True, 60, 5000, 60, needs_snapshots=True, growing_layers=8)
ALONE = ModelFacts(VOCABULARY, False, False, 100, 0, 100, needs_snapshots=False, growing_layers=8)
REPEATING = msgspec.structs.replace(LLAMA, repeats_shapes=True)
AMPLE = 2**40


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a chunk's tokens, padding included, and of a decode step of so many rows."""

    prompt_token: float = 1 / 2000
    step: float = 0.01
    row: float = 0.0002


@dataclass(frozen=True, slots=True)
class Faults:
    """How often, of a thousand drawn tokens, one falls short of its nucleus, or fails its sequence."""

    invalid_draws: int = 0
    failed: int = 0
    compile_steps: int = 3
    tokens_per_step: int = 1


BLOCK_BYTES = 10_000


@dataclass(slots=True)
class SimulatedDisk:
    """Blocks by name. Reading takes `delay_steps`; those in `lost` cannot be read."""

    files: dict[str, Block] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    delay_steps: int = 2
    read_seconds: float = 1e-5
    """Of a block."""
    reads: int = 0
    reading: list[tuple[int, Block]] = field(default_factory=list)
    was_read: dict[str, Block] = field(default_factory=dict)
    events: list[DiskEvent] = field(default_factory=list)

    def step(self) -> list[DiskEvent]:
        self.reading = [(steps - 1, block) for steps, block in self.reading]
        while self.reading and self.reading[0][0] <= 0:
            block = self.reading.pop(0)[1]
            is_there = self.files.get(block.name) == block and block.name not in self.lost
            if is_there:
                self.was_read[block.name] = block
            self.events.append(WasRead(block.name, BLOCK_BYTES if is_there else 0, self.read_seconds))
        events, self.events = self.events, []
        return events

    def write(self, block: Block) -> None:
        self.files[block.name] = block
        self.events.append(Written(block.name, BLOCK_BYTES, 1e-4))

    def read(self, block: Block) -> None:
        self.reads += 1
        self.reading.append((self.delay_steps, block))


@dataclass(slots=True)
class _Row:
    tokens: list[int]
    """In its cache."""
    input: int
    is_new: bool = True
    """Whether it has had no step: then the input is a token that the scheduler knows."""
    whole_nucleus: bool = False
    group: int = 0


def drawn(sequence: int, place: int) -> int:
    """The token that a sequence draws at a place, in whatever company. One of 200 ends it."""
    number = random.Random(1000 * sequence + place).randrange(VOCABULARY)
    return END if number < 5 else max(number, 10)


class SimulatedRunner:
    """Holds token lists in place of arrays. Asserts that a plan asks for nothing that is not there."""

    def __init__(self, facts: ModelFacts, costs: Costs, faults: Faults, disk: SimulatedDisk | None = None) -> None:
        self.facts = facts
        self.disk = disk if disk is not None else SimulatedDisk()
        self.known: dict[int, Submit] = {}
        self.prefilling: dict[int, list[int]] = {}
        self.batch: dict[int, _Row] = {}
        self.groups: dict[int, tuple[int, int]] = {}
        """The slots of each group, and their tokens."""
        self.slot_tokens: dict[int, int] = {}
        """Of sequences in prefill."""
        self.stored: dict[int, list[int]] = {}
        self.snapshots: dict[int, int] = {}
        self.compiling: dict[int, int] = {}
        self._costs = costs
        self._faults = faults
        self._random = random.Random(4)

    def run(self, plan: Plan) -> Outcome:
        assert not (plan.decode and plan.chunk)
        kept = [edit.node for edit in plan.edits if isinstance(edit, Store | Restore)]
        for edit in plan.edits:
            self._edit(edit)
        for sequence in (*plan.preempt, *plan.free):
            self.prefilling.pop(sequence, None)
            self.batch.pop(sequence, None)
        for sequence in plan.free:
            del self.known[sequence]
            self.compiling.pop(sequence, None)
        for change in plan.groups:
            self._edit_group(change)
        for message in plan.begin:
            assert message.sequence not in self.known
            self.known[message.sequence] = message
            if message.grammar is not None:
                self.compiling[message.sequence] = self._faults.compile_steps
        outcome = Outcome()
        if plan.chunk is not None:
            outcome = self._prefill(plan.chunk)
        elif plan.decode:
            outcome = self._decode()
        outcome.node_sizes = [self._size(node) for node in kept if node in self.stored]
        outcome.compiled = self._compile()
        outcome.disk = self.disk.step()
        return outcome

    def stored_bytes(self) -> int:
        return sum(kept.cut_bytes + kept.snapshot_bytes for kept in map(self._size, self.stored))

    def caches(self) -> list[int]:
        """Bytes of the slots of each group, and of each cache in prefill."""
        memory = KvMemory.of(self.facts, 0)
        rows = collections.Counter(row.group for row in self.batch.values())
        groups = [memory.held(count, *self.groups[group]) for group, count in rows.items()]
        return groups + [memory.held(1, 1, self.slot_tokens[sequence]) for sequence in self.prefilling]

    def _size(self, node: int) -> NodeSize:
        snapshot = self.facts.bytes_per_row if node in self.snapshots else 0
        return NodeSize(node, len(self.stored[node]) * self.facts.cut_bytes_per_token, snapshot)

    def _edit(self, edit: Edit) -> None:
        match edit:
            case Store(kept, sequence, start, end, snapshot):
                row = self.batch.get(sequence)
                held = self.prefilling[sequence] if row is None else row.tokens
                assert end <= len(held)
                assert not snapshot or end == len(held)
                self.stored.setdefault(kept, held[start:end])
                if snapshot:
                    self.snapshots[kept] = end
            case Split(node, upper, at):
                tokens = self.stored[node]
                assert 0 < at < len(tokens)
                self.stored[upper], self.stored[node] = tokens[:at], tokens[at:]
            case Evict(node):
                del self.stored[node]
                self.snapshots.pop(node, None)
            case Spill(block, nodes, skip):
                tokens = list(itertools.chain(*(self.stored[node] for node in nodes)))
                assert tokens[skip : skip + len(block.tokens)] == block.tokens
                assert not block.is_end or (
                    self.snapshots[nodes[-1]] == block.end and len(tokens) == skip + len(block.tokens)
                )
                self.disk.write(block)
            case Read(block):
                self.disk.read(block)
            case Restore(node, name, skip, snapshot):
                block = self.disk.was_read.pop(name)
                self.stored.setdefault(node, block.tokens[skip:])
                assert block.tokens[skip:] == self.stored[node] or snapshot
                if snapshot:
                    assert block.is_end
                    self.snapshots[node] = block.end
            case Discard(name):
                del self.disk.was_read[name]

    def _edit_group(self, edit: GroupEdit) -> None:
        match edit:
            case Resize(group, slots, tokens):
                self.groups[group] = (slots, tokens)
            case Move(sequences, group):
                for sequence in sequences:
                    self.batch[sequence].group = group
        self._check_slots()

    def _check_slots(self) -> None:
        """Every row has a slot that holds its tokens."""
        for group in {row.group for row in self.batch.values()}:
            slots, tokens = self.groups[group]
            rows = [row for row in self.batch.values() if row.group == group]
            assert len(rows) <= slots
            assert max(len(row.tokens) for row in rows) <= tokens

    def _prefill(self, chunk: Chunk) -> Outcome:
        assert chunk.rows >= len(chunk.segments)
        assert chunk.queries >= max(len(segment.tokens) for segment in chunk.segments)
        assert len(chunk.joins) in (0, len(chunk.segments))
        assert len(chunk.segments) == 1 or chunk.joins
        assert len(chunk.segments) == 1 or self.facts.prefills_together
        for segment in chunk.segments:
            if segment.prefix is not None:
                tokens = list(itertools.chain(*(self.stored[node] for node in segment.prefix.nodes)))
                assert len(tokens) >= segment.prefix.length > 0
                if self.facts.needs_snapshots:
                    assert self.snapshots[segment.prefix.nodes[-1]] == len(tokens) == segment.prefix.length
                assert segment.sequence not in self.prefilling
                self.prefilling[segment.sequence] = tokens[: segment.prefix.length]
            cache = self.prefilling.setdefault(segment.sequence, [])
            cache += segment.tokens
            assert len(cache) < chunk.tokens
            self.slot_tokens[segment.sequence] = chunk.tokens
            prompt = self.known[segment.sequence].prompt_tokens
            assert cache[: len(prompt)] == prompt[: len(cache)]
        for join in chunk.joins:
            cache = self.prefilling.pop(join.sequence)
            assert cache == join.tokens[:-1]
            assert self.known[join.sequence].grammar is None or join.sequence not in self.compiling
            assert self.facts.decodes_together or not self.batch
            self.batch[join.sequence] = _Row(cache, join.tokens[-1], whole_nucleus=join.whole_nucleus, group=join.group)
        self._check_slots()
        padded = len(chunk.segments) * max(len(segment.tokens) for segment in chunk.segments)
        return Outcome(seconds=padded * self._costs.prompt_token)

    def _decode(self) -> Outcome:
        outcome = Outcome(seconds=self._costs.step + self._costs.row * len(self.batch))
        for sequence, row in self.batch.items():
            row.tokens.append(row.input)
            if not row.is_new:
                self._tell(outcome, sequence, row)
            row.is_new = False
            row.input = self._draw(sequence, row)
        self._check_slots()
        return outcome

    def _tell(self, outcome: Outcome, sequence: int, row: _Row) -> None:
        """Of the token that was drawn in the last step, and of those behind it that a draft model guessed right."""
        if not row.whole_nucleus and self._happens(self._faults.invalid_draws):
            outcome.invalid_draws.append(sequence)
            return
        row.tokens += (self._draw(sequence, row) for _ in range(self._faults.tokens_per_step - 1))
        told = row.tokens[-self._faults.tokens_per_step :]
        outcome.sequences += [sequence] * len(told)
        outcome.tokens += told
        if self._happens(self._faults.failed):
            outcome.failed.append(Failed(sequence, "staged"))

    def _draw(self, sequence: int, row: _Row) -> int:
        return drawn(sequence, len(row.tokens) - len(self.known[sequence].prompt_tokens))

    def _happens(self, in_a_thousand: int) -> bool:
        return in_a_thousand > 0 and self._random.randrange(1000) < in_a_thousand

    def _compile(self) -> list[Compiled]:
        done = []
        for sequence in list(self.compiling):
            self.compiling[sequence] -= 1
            if self.compiling[sequence] <= 0:
                del self.compiling[sequence]
                done.append(Compiled(sequence, None))
        return done


@dataclass(slots=True)
class Life:
    """The messages about one sequence, and when they came."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    prefilled: Prefilled | None = None
    end: str | None = None

    @property
    def cached_tokens(self) -> int | None:
        return self.prefilled.cached_tokens if self.prefilled is not None else None


Arrival = Submit | Cancel | Limits


class Simulation:
    """`at` a time a message arrives; `run` until nothing is left to do."""

    def __init__(
        self,
        facts: ModelFacts = LLAMA,
        kv_bytes: int = AMPLE,
        prefix_bytes: int = 2**30,
        costs: Costs | None = None,
        faults: Faults | None = None,
        disk: SimulatedDisk | None = None,
    ) -> None:
        self.now = 0.0
        faults = faults or Faults()
        salt = "" if disk is None else "00" * 16
        facts = msgspec.structs.replace(facts, tokens_per_step=faults.tokens_per_step, disk_salt=salt)
        self.scheduler = Scheduler(facts, kv_bytes, prefix_bytes, inter_token_seconds=0.1)
        self.runner = SimulatedRunner(facts, costs or Costs(), faults, disk)
        if disk is not None:
            self.scheduler.disk.note(Listed(dict.fromkeys(disk.files, BLOCK_BYTES)))
        self.lives: dict[int, Life] = {}
        self.plans: list[bytes] = []
        self.longest_chunk = 0.0
        self._idle_steps = 0
        self._arrivals: list[tuple[float, int, Arrival]] = []
        self._count = itertools.count()

    def at(self, seconds: float, message: Arrival) -> None:
        heapq.heappush(self._arrivals, (seconds, next(self._count), message))

    def run(self, until: float = float("inf")) -> None:
        while self.now < until and (self._arrivals or self.scheduler.has_work):
            if not self.scheduler.has_work:
                self.now = max(self.now, self._arrivals[0][0])
            self.step()

    def step(self) -> Plan:
        while self._arrivals and self._arrivals[0][0] <= self.now:
            self._arrives(heapq.heappop(self._arrivals)[2])
        plan = self.scheduler.plan(self.now)
        self.plans.append(msgspec.msgpack.encode(plan))
        outcome = self.runner.run(msgspec.msgpack.decode(self.plans[-1], type=Plan))
        self.now += outcome.seconds or 1e-5
        if plan.chunk is not None:
            self.longest_chunk = max(self.longest_chunk, outcome.seconds)
        self._check_memory()
        messages = self.scheduler.note(outcome)
        for message in messages:
            self._told(message)
        is_idle = plan == Plan() and not messages and self.scheduler.has_work
        self._idle_steps = self._idle_steps + 1 if is_idle else 0
        assert self._idle_steps < 3, "the scheduler has work, and plans nothing"
        return plan

    def first_token_seconds(self, sequence: int, since: float) -> float:
        return self.lives[sequence].times[0] - since

    def _arrives(self, message: Arrival) -> None:
        match message:
            case Submit():
                self.lives[message.sequence] = Life()
                self.scheduler.submit(message, self.now)
            case Cancel(sequence):
                if self.lives[sequence].end is None:
                    self.lives[sequence].end = "cancelled"
                self.scheduler.cancel(sequence)
            case Limits(memory_bytes, _, prefix_bytes):
                self.scheduler.limit(memory_bytes, prefix_bytes)

    def _check_memory(self) -> None:
        runner, memory = self.runner, self.scheduler.memory
        assert runner.stored_bytes() <= self.scheduler.prefixes.limit_bytes
        caches = runner.caches()
        if len(runner.batch) + len(runner.prefilling) > 1 or runner.stored_bytes():
            assert memory.with_copies(caches) + runner.stored_bytes() <= memory.limit_bytes

    def _told(self, message: UpMessage) -> None:
        match message:
            case Step(sequences, tokens):
                for sequence, token in zip(sequences, tokens, strict=True):
                    life = self.lives[sequence]
                    assert life.end is None
                    life.tokens.append(token)
                    life.times.append(self.now)
            case RequestFinished(sequence, reason):
                assert self.lives[sequence].end is None
                self.lives[sequence].end = reason
            case RequestFailed(sequence, failure):
                assert self.lives[sequence].end is None
                self.lives[sequence].end = failure
            case Prefilled():
                self.lives[message.sequence].prefilled = message
            case Admitted():
                pass


def prompt(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(10, VOCABULARY), k=length)


def ask(sequence: int, tokens: list[int], max_tokens: int = 8, grammar: str | None = None) -> Submit:
    return Submit(sequence, tokens, max_tokens, [END], SamplingParams(seed=0), grammar)


def stream(sequence: int) -> Submit:
    """A short prompt with an answer that does not end by itself."""
    return Submit(sequence, prompt(sequence, 20), 100_000, [], SamplingParams(seed=0))
