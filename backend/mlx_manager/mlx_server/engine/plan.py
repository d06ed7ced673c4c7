"""Messages between the scheduler and the runner: a `Plan` for one step, and its `Outcome`.

A plan refers to sequences and stored prefixes by number and holds token ids, so it can be sent to every process that
holds a part of the model. Knows no arrays.
"""

import msgspec

from mlx_manager.mlx_server.engine.messages import Logprobs, PromptLogprobs, Step, Submit


class ModelFacts(msgspec.Struct, frozen=True, array_like=True):
    """Facts about the loaded model, from the runner.

    `prefills_together`: prompts of different lengths may share a forward pass. `decodes_together`: rows may be decoded
    in one batch.
    """

    vocabulary_size: int
    prefills_together: bool
    decodes_together: bool
    bytes_per_token: int
    """Of one row's cache, in the layers that grow with the sequence."""
    bytes_per_row: int
    """Of one row's cache, in the layers of fixed size."""
    cut_bytes_per_token: int
    """Of one row's cache, in the layers that can be cut at any token."""
    needs_snapshots: bool
    """Whether the cache has layers that cannot be cut: a prefix is usable only where these were copied."""
    pass_bytes: int = 2**25
    """A model call takes the time in which so much memory is read: its weights, and more if it is small."""
    growing_layers: int = 1
    """The number of layers that grow with the sequence."""
    repeats_shapes: bool = False
    """Whether the sizes of model calls come from a small set (`shapes.py`)."""
    tokens_per_step: int = 1
    """The most tokens that a step gives a sequence."""
    disk_salt: str = ""
    """The name before the first block on disk; empty without a disk tier."""


class _Edit(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Store(_Edit, frozen=True):
    """Store a copy of the sequence's cache as `node`.

    The copy has the tokens from `start` to `end` of the layers that can be cut. With `snapshot` it also has the state
    of the other layers after token `end`.
    """

    node: int
    sequence: int
    start: int
    end: int
    snapshot: bool


class Split(_Edit, frozen=True):
    """Move the first `at` tokens of `node` into a new node, `upper`."""

    node: int
    upper: int
    at: int


class Evict(_Edit, frozen=True):
    node: int


BLOCK_TOKENS = 256
"""Tokens of a block on disk."""


class Block(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a prefix on disk: `tokens` from position `start` on, after the block named `parent`.

    An end has fewer tokens than a block, none perhaps, and copies of the layers that cannot be cut.
    """

    name: str
    parent: str
    start: int
    tokens: list[int]
    is_end: bool = False

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class Spill(_Edit, frozen=True):
    """Write the block to disk. `nodes` hold its tokens, after the first `skip` tokens of the first node."""

    block: Block
    nodes: list[int]
    skip: int


class Read(_Edit, frozen=True):
    """Start to read the block from disk."""

    block: Block


class Restore(_Edit, frozen=True):
    """Store the block that was read as `node`, without its first `skip` tokens; with `snapshot`, also its copies.

    If the node is stored, it only lacks the copies.
    """

    node: int
    name: str
    skip: int
    snapshot: bool


class Discard(_Edit, frozen=True):
    """Drop the block that was read."""

    name: str


Edit = Store | Split | Evict | Spill | Read | Restore | Discard


class Prefix(msgspec.Struct, frozen=True, array_like=True):
    """The first `length` tokens of a prompt, stored in `nodes` in order; the last node may be used in part."""

    nodes: list[int]
    length: int


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one prompt to prefill; the list may be empty.

    They follow `prefix` in a new cache, or the tokens that the sequence has prefilled before.
    """

    sequence: int
    tokens: list[int]
    prefix: Prefix | None


class Resize(_Edit, frozen=True):
    """Give `group` so many slots of so many tokens. A group is new if no row is in it."""

    group: int
    slots: int
    tokens: int


class Move(_Edit, frozen=True):
    """Move the rows of the sequences to the end of another group, which may be new."""

    sequences: list[int]
    group: int


GroupEdit = Resize | Move


class Join(msgspec.Struct, frozen=True, array_like=True):
    """A sequence joins a group of the batch. Its cache holds `tokens` except the last one, its first input.

    `generated` counts its generated tokens. With `whole_nucleus` it draws from the sorted vocabulary.
    """

    sequence: int
    tokens: list[int]
    generated: int
    whole_nucleus: bool
    group: int


class Scored(msgspec.Struct, frozen=True, array_like=True):
    """Logprobs are requested of `targets`: the tokens after each token of a segment that begins at `start`."""

    start: int
    targets: list[int]


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Segments of prompts that share a forward pass. Several segments always complete their prompts, which join.

    The pass has `rows` rows of `queries` tokens, padding included, and their caches have slots of `tokens` tokens.
    """

    segments: list[Segment]
    rows: int
    queries: int
    tokens: int
    joins: list[Join] = []
    scored: Scored | None = None
    """Only for a single segment."""


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """One step. The runner executes the fields in their order."""

    edits: list[Edit] = []
    """Changes to the stored prefixes."""
    preempt: list[int] = []
    """Preempted sequences: they lose their caches, and are prefilled again later."""
    free: list[int] = []
    """Finished sequences."""
    begin: list[Submit] = []
    """New sequences; the runner starts to compile their grammars."""
    groups: list[GroupEdit] = []
    """Changes to the groups of the batch."""
    chunk: Chunk | None = None
    decode: bool = False
    """Whether to run one decode step of the batch."""
    wait: bool = False
    """Whether to wait for a grammar or the disk, because there is no other work."""


class NodeSize(msgspec.Struct, frozen=True, array_like=True):
    """Measured size of a stored node, in the layers that can be cut and in the others."""

    node: int
    cut_bytes: int
    snapshot_bytes: int


class Compiled(msgspec.Struct, frozen=True, array_like=True):
    """The sequence's grammar is compiled, or `failure` says why it cannot be."""

    sequence: int
    failure: str | None


class Failed(msgspec.Struct, frozen=True, array_like=True):
    sequence: int
    message: str


class Listed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The sizes in bytes of all blocks of this model on disk, by name."""

    sizes: dict[str, int]


class Written(msgspec.Struct, frozen=True, tag=True, array_like=True):
    name: str
    nbytes: int
    seconds: float


class WasRead(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """`nbytes` is 0 if the block is not on disk or is damaged."""

    name: str
    nbytes: int
    seconds: float


class DiskFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The disk tier is off until the model is loaded again."""

    fault: str


DiskEvent = Listed | Written | WasRead | DiskFailed


class Outcome(msgspec.Struct, array_like=True):
    """The result of running a plan. `tokens[i]` belongs to `sequences[i]`; a sequence may have several, in order."""

    sequences: list[int] = []
    tokens: list[int] = []
    logprobs: Logprobs | None = None
    invalid_draws: list[int] = []
    """Sequences whose top-p draw was invalid. The drawn token is dropped, but is in their caches."""
    ended: list[int] = []
    """Sequences whose grammar is complete after their last token."""
    failed: list[Failed] = []
    prompt_logprobs: PromptLogprobs | None = None
    node_sizes: list[NodeSize] = []
    compiled: list[Compiled] = []
    disk: list[DiskEvent] = []
    seconds: float = 0.0
    """Duration of the chunk or the decode step."""
    drain_seconds: float = 0.0
    """How long the chunk waited for the decode step before it."""

    def step(self, surplus: list[int]) -> Step:
        """The tokens as a message, without those at the indices in `surplus`."""
        if not surplus:
            return Step(self.sequences, self.tokens, self.logprobs)
        kept = [place for place in range(len(self.sequences)) if place not in surplus]
        return Step(
            [self.sequences[place] for place in kept],
            [self.tokens[place] for place in kept],
            self.logprobs.at(kept) if self.logprobs is not None else None,
        )
