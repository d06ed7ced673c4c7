"""The prompts that wait to be decoded: taken in by chunks between decode steps, short ones together.

A prompt begins with what the prefix cache knows of it. Chunks go by turns to the prompt that came first and to the one
with the fewest tokens left, with as many others as fit into its chunk: so a short prompt is not stuck behind a long
one, and nobody starves. A prompt that begins like one that is being taken in waits for it, and then starts from there.
Runs in the worker, on the engine's thread.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import mlx.core as mx
import mlx.nn as nn

from mlx_manager.mlx_server.engine.batch import Row
from mlx_manager.mlx_server.engine.batching import Batching, prefill_together
from mlx_manager.mlx_server.engine.kv_cache import Cache, RowCache, merge
from mlx_manager.mlx_server.engine.logprobs import score_prompt
from mlx_manager.mlx_server.engine.messages import PromptLogprobs
from mlx_manager.mlx_server.engine.prefix_cache import Match, PrefixCache, Tokens, common_length, token_array

MAX_GROUP_ROWS = 16
SCORED_CHUNK_TOKENS = 128
"""Of a prompt whose logprobs are asked for: the logits of a whole chunk are in memory at once."""
SEEN_PROMPTS = 64
"""So many of the first that wait are looked at."""
WORTH_WAITING_TOKENS = 32
"""A prompt waits for one that begins alike when it saves it as many tokens."""
KEPT_BOUNDARIES = 3


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What a chunk did. `rows` are done: their prompts are in `cache` but for their last tokens."""

    rows: list[Row]
    cache: Cache
    tokens: int
    """That went through the model, padding included."""
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(slots=True, eq=False)
class _Prompt:
    """A row's prompt on its way in: the first `done` of its tokens are in `cache` once it has begun."""

    row: Row
    boundaries: list[int]
    """Behind its messages: where the cache of a model is to be kept that cannot be cut."""
    match: Match = field(default_factory=lambda: Match(0, ()))
    cache: Cache | None = None
    done: int = 0
    is_awaited: bool = False
    added_at: float = field(default_factory=time.perf_counter)
    compared: Tokens = field(init=False)
    """Its tokens: prompts that wait are compared with each other, and with the prefix cache, before every chunk."""

    def __post_init__(self) -> None:
        self.compared = token_array(self.row.tokens)

    @property
    def tokens(self) -> list[int]:
        return self.row.tokens

    @property
    def is_scored(self) -> bool:
        """Whether its logprobs are wanted, which the prefix cache does not have. Nothing predicts a first token."""
        return self.row.prompt_logprobs and len(self.tokens) > 1

    @property
    def left(self) -> int:
        """Its last token is not taken in: it is the row's first input."""
        return len(self.tokens) - 1 - self.known

    @property
    def known(self) -> int:
        return self.match.length if self.cache is None else self.done

    @property
    def goes_alone(self) -> bool:
        """Whether it shares no forward pass: it is scored, or its cache is to be kept before its end."""
        return self.is_scored or self.next_boundary is not None

    @property
    def next_boundary(self) -> int | None:
        return next((place for place in self.boundaries if place > self.known), None)


class PrefillQueue:
    """`add` and `remove` rows; each `step` takes in some of their prompts."""

    def __init__(self, model: nn.Module, prefixes: PrefixCache, batching: Batching) -> None:
        self._model = model
        self._batching = batching
        self._prefixes = prefixes
        self._waiting: deque[_Prompt] = deque()
        self._oldest_is_next = True

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt among the first that wait."""
        return max((len(prompt.tokens) for prompt in islice(self._waiting, SEEN_PROMPTS)), default=0)

    def may_begin(self, fits: Callable[[int, int], bool]) -> bool:
        """Whether there is a prompt, and the first of them does not wait for memory. Cheap: asked before every step."""
        return bool(self._waiting) and fits(1, len(self._waiting[0].tokens))

    def add(self, row: Row) -> None:
        self._waiting.append(_Prompt(row, self._boundaries(row)))

    def add_first(self, row: Row) -> None:
        """For a row that was running, and has to begin again."""
        self._waiting.appendleft(_Prompt(row, []))

    def remove(self, rows: set[int]) -> None:
        """Forgets the rows with these sequence numbers; what was taken in of their prompts is kept for the next."""
        gone = [prompt for prompt in self._waiting if prompt.row.sequence in rows]
        for prompt in gone:
            self._waiting.remove(prompt)
            if prompt.cache is not None:
                self._prefixes.store(prompt.tokens[: prompt.done], RowCache(prompt.cache))

    def step(self, chunk_tokens: int, fits: Callable[[int, int], bool]) -> Prefilled | None:
        """One chunk. `fits(rows, longest)` tells whether so many more rows may run. None when none may."""
        candidates = self._candidates()
        if not candidates:
            return None
        oldest, shortest = candidates[0], min(candidates, key=lambda prompt: prompt.left)
        if not (fits(1, len(oldest.tokens)) and fits(1, len(shortest.tokens))):
            return None  # nobody overtakes one that waits for memory
        by_turn = oldest if self._oldest_is_next else shortest
        self._oldest_is_next = not self._oldest_is_next
        if by_turn.goes_alone or by_turn.left > chunk_tokens or not self._batching.prefills:
            return self._take_chunk(by_turn, chunk_tokens)
        return self._take_group(by_turn, candidates, chunk_tokens, fits)

    def _candidates(self) -> list[_Prompt]:
        """Those that need not wait for another one that begins alike."""
        seen = list(islice(self._waiting, SEEN_PROMPTS))
        begun = [prompt for prompt in seen if prompt.cache is not None]
        for prompt in seen:
            if prompt.cache is None and not prompt.is_scored:
                prompt.match = self._prefixes.match(prompt.compared)
        return [prompt for prompt in seen if prompt.cache is not None or not self._should_await(prompt, begun)]

    def _should_await(self, prompt: _Prompt, others: list[_Prompt]) -> bool:
        if self._prefixes.limit_bytes <= 0 or prompt.is_scored:
            return False
        for other in others:
            shared = min(common_length(prompt.compared, other.compared), len(prompt.tokens) - 1)
            if shared - prompt.match.length >= WORTH_WAITING_TOKENS:
                other.is_awaited = True
                return True
        return False

    def _begin(self, prompt: _Prompt) -> Cache:
        if prompt.cache is None:
            prompt.cache = self._prefixes.load(prompt.match)
            prompt.done = prompt.match.length
            if prompt.row.cached_tokens is None:
                prompt.row.cached_tokens = prompt.match.length
                prompt.row.queue_seconds = time.perf_counter() - prompt.added_at
        return prompt.cache

    def _take_chunk(self, prompt: _Prompt, chunk_tokens: int) -> Prefilled:
        """A part of one prompt, up to the next place at which its cache is to be kept."""
        cache = self._begin(prompt)
        last = len(prompt.tokens) - 1
        if prompt.is_scored:
            chunk_tokens = min(chunk_tokens, SCORED_CHUNK_TOKENS)
        start, end = prompt.done, min(prompt.done + chunk_tokens, prompt.next_boundary or last)
        scores = None
        if start < end:
            logits = self._model(mx.array([prompt.tokens[start:end]]), cache=cache)
            scores = score_prompt(prompt.row, prompt.tokens, start, logits[0]) if prompt.is_scored else None
            mx.eval([layer.state for layer in cache])
        prompt.done = end
        if end == last or end in prompt.boundaries:
            self._prefixes.store(prompt.tokens[:end], RowCache(cache))
        if end < last:
            return Prefilled([], [], end - start, scores)
        prompt.row.prompt_logprobs = False  # they are told once, also of a row that has to begin again
        self._waiting.remove(prompt)
        return Prefilled([prompt.row], merge([cache]) if self._batching.decodes else cache, end - start, scores)

    def _take_group(
        self, first: _Prompt, candidates: list[_Prompt], chunk_tokens: int, fits: Callable[[int, int], bool]
    ) -> Prefilled:
        """The rest of `first` and of others in one forward pass, padded to the longest of them."""
        group = self._gather(first, candidates, chunk_tokens, fits)
        cache = merge([self._begin(prompt) for prompt in group])
        inputs = [prompt.tokens[prompt.done : -1] for prompt in group]
        prefill_together(self._model, cache, inputs)
        for i, prompt in enumerate(group):
            self._waiting.remove(prompt)
            if prompt.is_awaited or self._prefixes.needs_snapshots:
                self._prefixes.store(prompt.tokens[:-1], RowCache.of_batch(cache, i, len(prompt.tokens) - 1))
        return Prefilled([prompt.row for prompt in group], cache, max(map(len, inputs)) * len(group))

    def _gather(
        self, first: _Prompt, candidates: list[_Prompt], chunk_tokens: int, fits: Callable[[int, int], bool]
    ) -> list[_Prompt]:
        group = [first]
        longest = first.left
        longest_row = len(first.tokens)
        for prompt in candidates:
            if prompt is first or prompt.goes_alone or self._should_await(prompt, group):
                continue
            padded = max(longest, prompt.left) * (len(group) + 1)
            row = max(longest_row, len(prompt.tokens))
            if len(group) < MAX_GROUP_ROWS and padded <= chunk_tokens and fits(len(group) + 1, row):
                group.append(prompt)
                longest, longest_row = max(longest, prompt.left), row
        return group

    def _boundaries(self, row: Row) -> list[int]:
        """Behind the first and the last few stop tokens of its prompt, which end the messages of a chat."""
        if not self._prefixes.needs_snapshots or self._prefixes.limit_bytes <= 0:
            return []
        places = [i + 1 for i, token in enumerate(row.tokens[:-2]) if token in row.stop_tokens]
        return sorted({*places[:1], *places[-KEPT_BOUNDARIES:]})
