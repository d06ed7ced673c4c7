"""Messages between the scheduler and the runner: a `Plan` for one step, and its `Outcome`.

A plan names sequences and stored prefixes by number and holds token ids, so it can be sent to every process that holds
a part of the model. Knows no arrays.
"""

import msgspec

from mlx_manager.mlx_server.engine.messages import Logprobs, PromptLogprobs, Submit


class ModelFacts(msgspec.Struct, frozen=True, array_like=True):
    """The runner's facts about its model, known when it is loaded.

    `prefills_together` says whether prompts of different lengths may share a forward pass, `decodes_together` whether
    rows may.
    """

    vocabulary_size: int
    prefills_together: bool
    decodes_together: bool
    bytes_per_token: int
    """Of one row's cache, in the layers that grow."""
    bytes_per_row: int
    """Of one row's cache, in the layers that do not grow."""
    growth_tokens: int
    """Caches grow by as many tokens at once."""
    cut_bytes_per_token: int
    """Of one row's cache, in the layers that can be cut at any token."""
    needs_snapshots: bool
    """Whether the cache has layers that cannot be cut: a prefix can be taken up only where they were copied."""
    tokens_per_step: int = 1
    """The most that a step gives a sequence."""


class _Edit(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Keep(_Edit, frozen=True):
    """Store a copy of the sequence's cache as `node`.

    In the layers that can be cut: of the tokens from `start` to `end`. With `snapshot`: of the other layers, too, whose
    state is that behind token `end`.
    """

    node: int
    sequence: int
    start: int
    end: int
    snapshot: bool


class Split(_Edit, frozen=True):
    """Put the first `at` tokens of `node` into a new node, `upper`, and leave it the rest."""

    node: int
    upper: int
    at: int


class Evict(_Edit, frozen=True):
    node: int


Edit = Keep | Split | Evict


class Prefix(msgspec.Struct, frozen=True, array_like=True):
    """The first `length` tokens of a prompt, which lie in `nodes` one after the other, of the last perhaps a part."""

    nodes: list[int]
    length: int


class Stretch(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one prompt that go through the model, perhaps none.

    They go behind `prefix` in a cache of its own, or behind what the sequence has taken in before.
    """

    sequence: int
    tokens: list[int]
    prefix: Prefix | None


class Join(msgspec.Struct, frozen=True, array_like=True):
    """A sequence that is decoded from now on. Its cache holds `tokens` but for the last, its first input.

    `generated` counts those that it has drawn. With `whole_nucleus` it draws from the sorted vocabulary.
    """

    sequence: int
    tokens: list[int]
    generated: int
    whole_nucleus: bool


class Scored(msgspec.Struct, frozen=True, array_like=True):
    """The logprobs of `targets` are asked for: those behind each token of a stretch that begins at place `start`."""

    start: int
    targets: list[int]


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Stretches of prompts that share a forward pass. Several of them are the last ones of their prompts, and join."""

    stretches: list[Stretch]
    joins: list[Join] = []
    scored: Scored | None = None
    """For a stretch that goes alone."""


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """One step, in the order of the fields."""

    edits: list[Edit] = []
    """Of the stored prefixes."""
    leave: list[int] = []
    """Sequences whose caches are given up, and which begin again later."""
    forget: list[int] = []
    """Sequences that have ended."""
    begin: list[Submit] = []
    """Sequences to be known from now on; their grammars are compiled."""
    chunk: Chunk | None = None
    decode: bool = False
    """Whether all sequences that have joined are decoded once."""
    wait: bool = False
    """Whether to wait for a grammar, because there is nothing else to do."""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What a stored node takes, in the layers that can be cut and in the others."""

    node: int
    cut_bytes: int
    snapshot_bytes: int


class Compiled(msgspec.Struct, frozen=True, array_like=True):
    """The sequence's grammar is ready, or cannot be followed: then `failure` says why."""

    sequence: int
    failure: str | None


class Failed(msgspec.Struct, frozen=True, array_like=True):
    sequence: int
    message: str


class Outcome(msgspec.Struct, array_like=True):
    """What running a plan gave. `tokens[i]` was drawn for `sequences[i]`, which may have several, in their order."""

    sequences: list[int] = []
    tokens: list[int] = []
    logprobs: Logprobs | None = None
    fallen_short: list[int] = []
    """Sequences without a token: theirs was not drawn from the whole nucleus. It is in their caches all the same."""
    ended: list[int] = []
    """Sequences whose grammar ends with the last token that was drawn for them."""
    failed: list[Failed] = []
    prompt_logprobs: PromptLogprobs | None = None
    kept: list[Kept] = []
    compiled: list[Compiled] = []
    seconds: float = 0.0
    """That the chunk or the decode step took."""
    drain_seconds: float = 0.0
    """That the chunk waited for the decode step before it."""
