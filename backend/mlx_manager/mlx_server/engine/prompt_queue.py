"""The queue of prompts to prefill, and the choice of the next chunk. Chunks run between decode steps.

A prompt starts after its stored prefix. The prompt with the fewest tokens left goes first, with all others that fit
into its chunk, so a short prompt waits for one chunk at most. MAX_OVERTAKING_TOKENS of later prompts may overtake the
oldest prompt; then it gets as many itself. A prompt that shares a prefix with one in prefill waits for that prefix.
Decides by token counts. Knows no arrays and does not import MLX.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from mlx_manager.mlx_server.engine.disk_tier import DiskTier
from mlx_manager.mlx_server.engine.messages import Prefilled
from mlx_manager.mlx_server.engine.prefix_tree import NO_MATCH, Match, PrefixTree, Tokens, common_length, token_array
from mlx_manager.mlx_server.engine.shapes import MAX_PREFILL_ROWS, Shapes

SCORED_CHUNK_TOKENS = 128
"""Largest chunk of a prompt with prompt logprobs: the logits of the whole chunk are in memory at once."""
MAX_CANDIDATES = 64
"""Only this many of the oldest prompts are candidates for the next chunk."""
MIN_SHARED_TOKENS = 32
"""A prompt waits for a prefix that it shares with another one only if that saves this many tokens."""
MAX_OVERTAKING_TOKENS = 1024
"""Tokens of later prompts that may overtake the oldest prompt; then the oldest gets as many itself."""
KEPT_BOUNDARIES = 3


@dataclass(slots=True, eq=False)
class Sequence:
    """One generation. `tokens` holds the prompt's tokens and the generated ones.

    `cached_tokens` counts the prompt tokens found in the prefix cache (None until prefill starts), and `queue_seconds`
    is the wait until prefill started. `shared_tokens` and `evicted_tokens` are those of `messages.Prefilled`.
    """

    number: int
    tokens: list[int]
    prompt_tokens: int
    max_total_tokens: int
    """Limit of prompt and generated tokens together."""
    stop_tokens: frozenset[int]
    scores_prompt: bool = False
    cached_tokens: int | None = None
    shared_tokens: int = 0
    evicted_tokens: int = 0
    queue_seconds: float = 0.0
    needs_whole_nucleus: bool = False
    """Whether an earlier top-p draw was invalid: the sequence now draws from the sorted vocabulary."""

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    def prefilled(self) -> Prefilled:
        cached_tokens = self.cached_tokens if self.cached_tokens is not None else 0
        return Prefilled(self.number, cached_tokens, self.queue_seconds, self.shared_tokens, self.evicted_tokens)


@dataclass(slots=True, eq=False)
class Prompt:
    """A sequence in prefill. Once it has begun, its cache holds the first `done` tokens."""

    sequence: Sequence
    boundaries: list[int]
    """Ends of chat messages in the prompt, at which a cache that cannot be cut is stored."""
    added_at: float
    match: Match = NO_MATCH
    matched_version: int = -1
    awaited_block: str = ""
    """The last block that is read from disk for it."""
    has_begun: bool = False
    done: int = 0
    slot_tokens: int = 0
    """Tokens that its cache has memory for."""
    is_awaited: bool = False
    stored: int = 0
    """Length of the prefix that was stored during prefill, for prompts that share it."""
    compared: Tokens = field(init=False)
    """The tokens as an array, to compare with other prompts and with stored prefixes."""
    head: bytes = field(init=False)
    """The first tokens as bytes: prompts whose heads differ share too little to wait for each other."""

    def __post_init__(self) -> None:
        self.compared = token_array(self.sequence.tokens)
        self.head = self.compared[:MIN_SHARED_TOKENS].tobytes()

    @property
    def length(self) -> int:
        return len(self.compared)

    @property
    def is_scored(self) -> bool:
        """Whether prompt logprobs are requested, which a stored prefix lacks. The first token has none."""
        return self.sequence.scores_prompt and self.length > 1

    @property
    def known(self) -> int:
        return self.done if self.has_begun else self.match.length

    @property
    def left(self) -> int:
        """Tokens left to prefill. The last token is excluded: it is the first input of the decode step."""
        return self.length - 1 - self.known

    @property
    def next_boundary(self) -> int | None:
        return next((place for place in self.boundaries if place > self.known), None)

    @property
    def goes_alone(self) -> bool:
        """Whether it needs a forward pass of its own: it is scored, or its cache is stored before its end."""
        return self.is_scored or self.next_boundary is not None


@dataclass(frozen=True, slots=True)
class Selection:
    """The next chunk: the tokens of each prompt up to its entry in `ends`. Several prompts always run to completion."""

    prompts: list[Prompt]
    ends: list[int]
    alone: bool
    """Whether the chunk is a segment of a single prompt, which is long or needs a forward pass of its own."""

    @property
    def completes(self) -> bool:
        return self.ends[0] == self.prompts[0].length - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return max(end - prompt.known for prompt, end in zip(self.prompts, self.ends, strict=True))

    @property
    def padded_tokens(self) -> int:
        return len(self.prompts) * self.longest


FitsMemory = Callable[[list[Prompt]], bool]
"""Whether the caches of these additional prompts fit into memory."""


class PromptQueue:
    """`add` and `remove` prompts, `choose` the next chunk, and report with `advance` that it has run."""

    def __init__(self, prefixes: PrefixTree, together: bool, shapes: Shapes, disk: DiskTier) -> None:
        self.begun: list[Prompt] = []
        """Prompts that have a cache."""
        self._prefixes = prefixes
        self._together = together
        self._shapes = shapes
        self._disk = disk
        self._waiting: deque[Prompt] = deque()
        self._oldest: Prompt | None = None
        self._overtaken_tokens = 0
        self._catches_up = False

    def __len__(self) -> int:
        return len(self._waiting)

    def may_choose(self, fits_memory: FitsMemory) -> bool:
        """Whether any prompt fits into memory. Cheap: the scheduler asks before every step."""
        return bool(self._waiting) and any(fits_memory([prompt]) for prompt in (self._waiting[0], *self.begun))

    def add(self, sequence: Sequence, now: float) -> Prompt:
        prompt = Prompt(sequence, self._boundaries(sequence), now)
        self._waiting.append(prompt)
        return prompt

    def requeue(self, sequence: Sequence, now: float) -> None:
        """Adds a preempted sequence at the head of the queue."""
        self._waiting.appendleft(Prompt(sequence, [], now))

    def remove(self, sequence: Sequence) -> Prompt | None:
        """Removes the sequence's prompt and returns it, if it is queued."""
        prompt = next((prompt for prompt in self._waiting if prompt.sequence is sequence), None)
        if prompt is not None:
            self._waiting.remove(prompt)
            if prompt.has_begun:
                self.begun.remove(prompt)
        return prompt

    def preempt(self, prompt: Prompt) -> None:
        """Preempts a prompt: it loses its cache and keeps its place in the queue."""
        self.begun.remove(prompt)
        prompt.has_begun = False
        prompt.done = prompt.slot_tokens = 0
        prompt.matched_version = -1

    def choose(self, chunk_tokens: int, fits_memory: FitsMemory) -> Selection | None:
        """The next chunk. None when no prompt fits into memory."""
        candidates = self._candidates()
        if not fits_memory(candidates[:1]):  # only prompts that already hold memory overtake one that waits for memory
            candidates = [prompt for prompt in candidates if prompt.has_begun and fits_memory([prompt])]
        if not candidates:
            return None
        picked = self._pick(candidates, fits_memory)
        if picked.goes_alone or picked.left > chunk_tokens or not self._together:
            return self._segment(picked, chunk_tokens)
        group = self._gather(picked, candidates, chunk_tokens, fits_memory)
        return Selection(group, [prompt.length - 1 for prompt in group], alone=False)

    def begin(self, prompt: Prompt, now: float) -> None:
        """Starts the prefill of the prompt, after its stored prefix."""
        self._prefixes.use(prompt.match)
        prompt.done = prompt.match.length
        prompt.has_begun = True
        self.begun.append(prompt)
        if prompt.sequence.cached_tokens is None:
            prompt.sequence.cached_tokens = prompt.match.length
            prompt.sequence.shared_tokens = prompt.match.shared
            if prompt.left >= MIN_SHARED_TOKENS:
                prompt.sequence.evicted_tokens = self._prefixes.evicted_length(prompt.compared)
            prompt.sequence.queue_seconds = now - prompt.added_at

    def advance(self, selection: Selection) -> None:
        """Records that the chunk has run. Completed prompts leave the queue."""
        self._count(selection)
        for prompt, end in zip(selection.prompts, selection.ends, strict=True):
            prompt.done = end
            if selection.completes:
                self._waiting.remove(prompt)
                self.begun.remove(prompt)

    def _candidates(self) -> list[Prompt]:
        """Prompts that do not wait for a shared prefix or for the disk."""
        seen = list(islice(self._waiting, MAX_CANDIDATES))
        begun = [prompt for prompt in seen if prompt.has_begun]
        for prompt in seen:
            self._look_up(prompt)
        return [prompt for prompt in seen if prompt.has_begun or not self._must_wait(prompt, begun)]

    def _must_wait(self, prompt: Prompt, begun: list[Prompt]) -> bool:
        return prompt.awaited_block in self._disk.reading or self._should_await(prompt, begun)

    def _should_await(self, prompt: Prompt, others: list[Prompt]) -> bool:
        if prompt.is_scored or self._prefixes.limit_bytes <= 0:
            return False
        for other in others:
            if other.head != prompt.head:
                continue
            shared = min(_shared_tokens(prompt, other), prompt.length - 1)
            if shared - prompt.match.length >= MIN_SHARED_TOKENS and not self._is_known(prompt, other, shared):
                other.is_awaited = True
                return True
        return False

    def _is_known(self, prompt: Prompt, other: Prompt, shared: int) -> bool:
        """Stores the shared prefix of both prompts, once `other` has been prefilled that far."""
        if self._prefixes.needs_snapshots or not other.has_begun or other.done < shared:
            return False
        if other.stored < shared:
            other.stored = shared
            self._prefixes.store(prompt.compared[:shared], other.sequence.number)
            self._look_up(prompt)
        return True

    def _look_up(self, prompt: Prompt) -> None:
        if prompt.matched_version != self._prefixes.version and not prompt.has_begun and not prompt.is_scored:
            prompt.match = self._prefixes.match(prompt.compared)
            prompt.matched_version = self._prefixes.version

    def _pick(self, candidates: list[Prompt], fits_memory: FitsMemory) -> Prompt:
        oldest, shortest = candidates[0], min(candidates, key=lambda prompt: prompt.left)
        if oldest is not self._oldest:
            self._oldest, self._overtaken_tokens, self._catches_up = oldest, 0, False
        return oldest if self._catches_up or not fits_memory([shortest]) else shortest

    def _count(self, selection: Selection) -> None:
        """Counts the tokens of later prompts that overtake the oldest one."""
        if self._oldest in selection.prompts:
            self._overtaken_tokens = max(0, self._overtaken_tokens - selection.padded_tokens)
        else:
            self._overtaken_tokens += selection.padded_tokens
        if self._overtaken_tokens >= MAX_OVERTAKING_TOKENS:
            self._catches_up = True
        elif self._overtaken_tokens == 0:
            self._catches_up = False

    def _segment(self, prompt: Prompt, chunk_tokens: int) -> Selection:
        """A segment of one prompt, up to the next boundary at which its cache is stored."""
        if prompt.is_scored:
            chunk_tokens = min(chunk_tokens, SCORED_CHUNK_TOKENS)
        end = min(prompt.known + chunk_tokens, prompt.next_boundary or prompt.length - 1)
        return Selection([prompt], [end], alone=True)

    def _gather(
        self, first: Prompt, candidates: list[Prompt], chunk_tokens: int, fits_memory: FitsMemory
    ) -> list[Prompt]:
        """`first` and other prompts whose remaining tokens, padded to the longest, fit into one chunk."""
        group = [first]
        longest = first.left
        for prompt in candidates:
            if len(group) == MAX_PREFILL_ROWS:
                break
            if prompt is first or prompt.goes_alone or self._should_await(prompt, group):
                continue
            queries = self._shapes.queries(max(longest, prompt.left))
            padded = self._shapes.prefill_rows(len(group) + 1) * queries
            if padded <= chunk_tokens and fits_memory([*group, prompt]):
                group.append(prompt)
                longest = max(longest, prompt.left)
        return group

    def _boundaries(self, sequence: Sequence) -> list[int]:
        """Positions after the first and the last few stop tokens of the prompt, which end chat messages."""
        if not self._prefixes.needs_snapshots or self._prefixes.limit_bytes <= 0:
            return []
        stop_tokens = sequence.stop_tokens
        places = [i + 1 for i, token in enumerate(sequence.tokens[:-2]) if token in stop_tokens]
        return sorted({*places[:1], *places[-KEPT_BOUNDARIES:]})


def _shared_tokens(one: Prompt, other: Prompt) -> int:
    """Length of the shared prefix. Tokens that both prompts match in the same stored node are not compared again."""
    same = bool(one.match.path) and one.match.path[-1:] == other.match.path[-1:]
    known = min(one.match.length, other.match.length) if same else 0
    return known + common_length(one.compared[known:], other.compared[known:])
