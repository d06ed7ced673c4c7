"""The prompts that wait to be decoded, and whose turn it is. Chunks are taken in between decode steps.

A prompt begins with what is stored of it. Chunks go to the prompt with the fewest tokens left, with as many others as
fit into its chunk, so a short prompt waits for the chunk in progress and no longer. The prompt that came first is
overtaken by a bounded number of tokens before it gets as many itself. A prompt that begins like one that is being taken
in waits until the common part is known, and starts from there. Decides from counts alone, without MLX.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from mlx_manager.mlx_server.engine.prefix_tree import NO_MATCH, Match, PrefixTree, Tokens, common_length, token_array

MAX_GROUP_ROWS = 16
SCORED_CHUNK_TOKENS = 128
"""Of a prompt whose logprobs are asked for: the logits of a whole chunk are in memory at once."""
SEEN_PROMPTS = 64
"""So many of the first that wait are looked at."""
WORTH_WAITING_TOKENS = 32
"""A prompt waits for one that begins alike when it saves it as many tokens."""
OVERTAKING_TOKENS = 1024
"""So many tokens of later prompts go before one that came first; then it gets as many itself."""
KEPT_BOUNDARIES = 3


@dataclass(slots=True, eq=False)
class Sequence:
    """One generation. `tokens` are the prompt's and those that were handed out.

    `cached_tokens` is how many of the prompt were stored, None before that is known, and `queue_seconds` how long it
    waited for its turn.
    """

    number: int
    tokens: list[int]
    prompt_tokens: int
    most_tokens: int
    """Of prompt and answer."""
    stop_tokens: frozenset[int]
    scores_prompt: bool = False
    cached_tokens: int | None = None
    queue_seconds: float = 0.0
    needs_whole_nucleus: bool = False
    """Whether the likeliest tokens have fallen short of its top-p before: it draws from the sorted vocabulary."""

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens


@dataclass(slots=True, eq=False)
class Prompt:
    """A sequence's tokens on their way in: the first `done` of them are in its cache once it has begun."""

    sequence: Sequence
    boundaries: list[int]
    """Ends of its messages. A cache that cannot be cut is stored there."""
    added_at: float
    match: Match = NO_MATCH
    matched_version: int = -1
    has_begun: bool = False
    done: int = 0
    is_awaited: bool = False
    stored: int = 0
    """So many of its tokens were stored on its way, for prompts that begin alike."""
    compared: Tokens = field(init=False)
    """Its tokens: prompts that wait are compared with each other, and with what is stored."""
    head: bytes = field(init=False)
    """Of the first of them: prompts with other ones have too little in common to wait for each other."""

    def __post_init__(self) -> None:
        self.compared = token_array(self.sequence.tokens)
        self.head = self.compared[:WORTH_WAITING_TOKENS].tobytes()

    @property
    def length(self) -> int:
        return len(self.compared)

    @property
    def is_scored(self) -> bool:
        """Whether its logprobs are wanted, which are not stored. Nothing predicts a first token."""
        return self.sequence.scores_prompt and self.length > 1

    @property
    def known(self) -> int:
        return self.done if self.has_begun else self.match.length

    @property
    def left(self) -> int:
        """Its last token is not taken in: it is its sequence's first input."""
        return self.length - 1 - self.known

    @property
    def next_boundary(self) -> int | None:
        return next((place for place in self.boundaries if place > self.known), None)

    @property
    def goes_alone(self) -> bool:
        """Whether it shares no forward pass: it is scored, or its cache is stored before its end."""
        return self.is_scored or self.next_boundary is not None


@dataclass(frozen=True, slots=True)
class Turn:
    """What is taken in next: of each prompt the tokens up to its `ends`. Several prompts are taken in to their ends."""

    prompts: list[Prompt]
    ends: list[int]
    alone: bool
    """Whether it is a stretch of a prompt that is long, or has to go alone for another reason."""

    @property
    def completes(self) -> bool:
        return self.ends[0] == self.prompts[0].length - 1

    @property
    def padded_tokens(self) -> int:
        return len(self.prompts) * max(end - prompt.known for prompt, end in zip(self.prompts, self.ends, strict=True))


MayHold = Callable[[list[Prompt]], bool]
"""Whether the caches of so many more prompts fit into the memory."""


class PromptQueue:
    """`add` and `remove` prompts, `choose` whose turn it is, and `took` when that chunk has run."""

    def __init__(self, prefixes: PrefixTree, together: bool) -> None:
        self.begun: list[Prompt] = []
        """Those that have a cache."""
        self._prefixes = prefixes
        self._together = together
        self._waiting: deque[Prompt] = deque()
        self._oldest: Prompt | None = None
        self._overtaken_tokens = 0
        self._catches_up = False

    def __len__(self) -> int:
        return len(self._waiting)

    def may_choose(self, may_hold: MayHold) -> bool:
        """Whether there is a prompt that does not wait for memory. Cheap: asked before every step."""
        return bool(self._waiting) and any(may_hold([prompt]) for prompt in (self._waiting[0], *self.begun))

    def add(self, sequence: Sequence, now: float) -> None:
        self._waiting.append(Prompt(sequence, self._boundaries(sequence), now))

    def add_first(self, sequence: Sequence, now: float) -> None:
        """For a sequence that was running, and has to begin again."""
        self._waiting.appendleft(Prompt(sequence, [], now))

    def remove(self, sequence: Sequence) -> Prompt | None:
        """The prompt of the sequence, if it waits."""
        prompt = next((prompt for prompt in self._waiting if prompt.sequence is sequence), None)
        if prompt is not None:
            self._waiting.remove(prompt)
            if prompt.has_begun:
                self.begun.remove(prompt)
        return prompt

    def give_up(self, prompt: Prompt) -> None:
        """It loses its cache, keeps its place, and begins again later."""
        self.begun.remove(prompt)
        prompt.has_begun = False
        prompt.done = 0
        prompt.matched_version = -1

    def choose(self, chunk_tokens: int, may_hold: MayHold) -> Turn | None:
        """Whose turn it is. None when there is no memory."""
        candidates = self._candidates()
        if not may_hold(candidates[:1]):  # only prompts that hold memory overtake one that waits for it
            candidates = [prompt for prompt in candidates if prompt.has_begun and may_hold([prompt])]
        if not candidates:
            return None
        by_turn = self._by_turn(candidates, may_hold)
        if by_turn.goes_alone or by_turn.left > chunk_tokens or not self._together:
            return self._stretch(by_turn, chunk_tokens)
        group = self._gather(by_turn, candidates, chunk_tokens, may_hold)
        return Turn(group, [prompt.length - 1 for prompt in group], alone=False)

    def begin(self, prompt: Prompt, now: float) -> None:
        """The prompt's first tokens are taken in, behind what is stored of it."""
        self._prefixes.use(prompt.match)
        prompt.done = prompt.match.length
        prompt.has_begun = True
        self.begun.append(prompt)
        if prompt.sequence.cached_tokens is None:
            prompt.sequence.cached_tokens = prompt.match.length
            prompt.sequence.queue_seconds = now - prompt.added_at

    def took(self, turn: Turn) -> None:
        """The turn's tokens were taken in. Prompts that are done wait no more."""
        self._count(turn)
        for prompt, end in zip(turn.prompts, turn.ends, strict=True):
            prompt.done = end
            if turn.completes:
                self._waiting.remove(prompt)
                self.begun.remove(prompt)

    def _candidates(self) -> list[Prompt]:
        """Prompts that do not wait for another one that begins alike."""
        seen = list(islice(self._waiting, SEEN_PROMPTS))
        begun = [prompt for prompt in seen if prompt.has_begun]
        for prompt in seen:
            self._look_up(prompt)
        return [prompt for prompt in seen if prompt.has_begun or not self._should_await(prompt, begun)]

    def _should_await(self, prompt: Prompt, others: list[Prompt]) -> bool:
        if prompt.is_scored or self._prefixes.limit_bytes <= 0:
            return False
        for other in others:
            if other.head != prompt.head:
                continue
            shared = min(_shared_tokens(prompt, other), prompt.length - 1)
            if shared - prompt.match.length >= WORTH_WAITING_TOKENS and not self._is_known(prompt, other, shared):
                other.is_awaited = True
                return True
        return False

    def _is_known(self, prompt: Prompt, other: Prompt, shared: int) -> bool:
        """Stores what both prompts begin with, if the other has been taken in so far."""
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

    def _by_turn(self, candidates: list[Prompt], may_hold: MayHold) -> Prompt:
        oldest, shortest = candidates[0], min(candidates, key=lambda prompt: prompt.left)
        if oldest is not self._oldest:
            self._oldest, self._overtaken_tokens, self._catches_up = oldest, 0, False
        return oldest if self._catches_up or not may_hold([shortest]) else shortest

    def _count(self, turn: Turn) -> None:
        """Adds up the tokens of later prompts that go before those of the oldest."""
        if self._oldest in turn.prompts:
            self._overtaken_tokens = max(0, self._overtaken_tokens - turn.padded_tokens)
        else:
            self._overtaken_tokens += turn.padded_tokens
        if self._overtaken_tokens >= OVERTAKING_TOKENS:
            self._catches_up = True
        elif self._overtaken_tokens == 0:
            self._catches_up = False

    def _stretch(self, prompt: Prompt, chunk_tokens: int) -> Turn:
        """A part of one prompt, up to the next place at which its cache is stored."""
        if prompt.is_scored:
            chunk_tokens = min(chunk_tokens, SCORED_CHUNK_TOKENS)
        end = min(prompt.known + chunk_tokens, prompt.next_boundary or prompt.length - 1)
        return Turn([prompt], [end], alone=True)

    def _gather(self, first: Prompt, candidates: list[Prompt], chunk_tokens: int, may_hold: MayHold) -> list[Prompt]:
        """`first` and others whose rests fit into one chunk, padded to the longest of them."""
        group = [first]
        longest = first.left
        for prompt in candidates:
            if len(group) == MAX_GROUP_ROWS:
                break
            if prompt is first or prompt.goes_alone or self._should_await(prompt, group):
                continue
            padded = max(longest, prompt.left) * (len(group) + 1)
            if padded <= chunk_tokens and may_hold([*group, prompt]):
                group.append(prompt)
                longest = max(longest, prompt.left)
        return group

    def _boundaries(self, sequence: Sequence) -> list[int]:
        """Behind the first and the last few stop tokens of its prompt, which end the messages of a chat."""
        if not self._prefixes.needs_snapshots or self._prefixes.limit_bytes <= 0:
            return []
        stop_tokens = sequence.stop_tokens
        places = [i + 1 for i, token in enumerate(sequence.tokens[:-2]) if token in stop_tokens]
        return sorted({*places[:1], *places[-KEPT_BOUNDARIES:]})


def _shared_tokens(one: Prompt, other: Prompt) -> int:
    """How many tokens both begin with. What both have found in the same stored node is not compared again."""
    same = bool(one.match.path) and one.match.path[-1:] == other.match.path[-1:]
    known = min(one.match.length, other.match.length) if same else 0
    return known + common_length(one.compared[known:], other.compared[known:])
