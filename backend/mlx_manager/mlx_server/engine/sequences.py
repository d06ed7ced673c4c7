"""What has come of the sequences that a request has in the engine, for their consumer to take. Runs on the event loop.

Tokens pile up at the sequence they belong to, and a consumer that lags takes them all at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import NamedTuple

from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.types import FinishReason


class Score(NamedTuple):
    """A token's logprob, and the likeliest tokens at its place with theirs."""

    logprob: float
    top_tokens: list[int]
    top: list[float]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one sequence that came since the last look; `finish_reason` is set on its last ones.

    `scores` has one for each token where logprobs were asked for. `prompt_scores`, of the prompt's tokens from its
    second on, come with the first tokens.
    """

    token_ids: list[int]
    finish_reason: FinishReason | None
    scores: list[Score]
    prompt_scores: list[Score]


class Sequence:
    """One generation in the engine. `news` is set whenever something of it has come."""

    def __init__(self, news: asyncio.Event) -> None:
        self.admitted_at: float | None = None
        """To the engine's queue; this time and the next are those of `time.perf_counter`."""
        self.prefilled_at: float | None = None
        self.queue_seconds = 0.0
        """From the first of them until the prompt's turn came."""
        self.cached_tokens = 0
        """Of the prompt, that the engine had in its prefix cache; known when it is prefilled."""
        self._tokens: list[int] = []
        self._scores: list[Score] = []
        self._prompt_scores: list[Score] = []
        self._finish_reason: FinishReason | None = None
        self._failure: ServerError | None = None
        self._news = news

    def admit(self) -> None:
        self.admitted_at = time.perf_counter()
        self._news.set()

    def prefill(self, cached_tokens: int, queue_seconds: float) -> None:
        self.prefilled_at = time.perf_counter()
        self.cached_tokens, self.queue_seconds = cached_tokens, queue_seconds

    def push_token(self, token: int) -> None:
        self._tokens.append(token)
        self._news.set()

    def push_score(self, score: Score) -> None:
        self._scores.append(score)

    def push_prompt_score(self, score: Score) -> None:
        self._prompt_scores.append(score)

    def finish(self, reason: FinishReason) -> None:
        self._finish_reason = reason
        self._news.set()

    def fail(self, failure: ServerError) -> None:
        self._failure = failure
        self._news.set()

    def take(self) -> Tokens | None:
        """What came since the last look, None when nothing did. Raises what the sequence failed with."""
        if not self._tokens and self._finish_reason is None:
            self.check()
            return None
        taken = Tokens(self._tokens, self._finish_reason, self._scores, self._prompt_scores)
        self._tokens, self._scores, self._prompt_scores = [], [], []
        return taken

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure


class SequenceGroup:
    """Sequences that were submitted together: an async iterator of (index, Tokens), in turns as the tokens come."""

    def __init__(self, count: int, cancel: Callable[[int], None]) -> None:
        self._news = asyncio.Event()
        self._cancel = cancel
        self._members = [Sequence(self._news) for _ in range(count)]
        self._running = dict(enumerate(self._members))
        self._turn: deque[int] = deque()

    @property
    def members(self) -> list[Sequence]:
        return self._members

    async def wait_until_admitted(self) -> None:
        """Raises what the engine refused one of the sequences with."""
        while True:
            self._news.clear()
            for member in self._members:
                member.check()
            if all(member.admitted_at is not None for member in self._members):
                return
            await self._news.wait()

    def cancel(self, index: int) -> None:
        """Stops one of the sequences; nothing more comes of it."""
        if self._running.pop(index, None) is not None:
            self._cancel(index)

    def __aiter__(self) -> AsyncIterator[tuple[int, Tokens]]:
        return self

    async def __anext__(self) -> tuple[int, Tokens]:
        while self._running:
            if not self._turn:
                self._news.clear()
                self._turn.extend(self._running)
            while self._turn:
                index = self._turn.popleft()
                tokens = self._running[index].take() if index in self._running else None
                if tokens is not None:
                    if tokens.finish_reason is not None:
                        del self._running[index]
                    return index, tokens
            await self._news.wait()
        raise StopAsyncIteration
