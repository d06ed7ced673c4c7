"""The results of a request's sequences, buffered for their consumer. Runs on the event loop.

Each sequence buffers its tokens, and a slow consumer takes them all at once. Knows no text and no sockets.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec

from mlx_manager.mlx_server.engine.messages import Prefilled
from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.types import FinishReason


class Score(NamedTuple):
    """A token's logprob, and the most likely tokens at its position with their logprobs."""

    logprob: float
    top_tokens: list[int]
    top: list[float]


class Tokens(msgspec.Struct, frozen=True):
    """New tokens of one sequence; `finish_reason` is set with the last ones.

    `scores` has one entry for each token if logprobs were requested. `prompt_scores` cover the prompt from its second
    token on, and come with the first tokens. A Struct, because one is made for each token: a dataclass takes six times
    as long.
    """

    token_ids: list[int]
    finish_reason: FinishReason | None
    scores: list[Score]
    prompt_scores: list[Score]


_NO_SCORES: list[Score] = []


class Sequence:
    """One generation in the engine. New results wake the consumer of its group."""

    __slots__ = (
        "_failure",
        "_finish_reason",
        "_group",
        "_is_ready",
        "_prompt_scores",
        "_scores",
        "_tokens",
        "admitted_at",
        "cached_tokens",
        "evicted_tokens",
        "index",
        "prefilled_at",
        "queue_seconds",
        "shared_tokens",
    )

    def __init__(self, group: "SequenceGroup", index: int) -> None:
        self.index = index
        self.admitted_at: float | None = None
        """When the engine queued it, by `time.perf_counter`, as is `prefilled_at`."""
        self.prefilled_at: float | None = None
        self.queue_seconds = 0.0
        """From `admitted_at` until prefill started."""
        self.cached_tokens = 0
        """Prompt tokens found in the prefix cache; known after prefill, as are the next two."""
        self.shared_tokens = 0
        """Where the prompt left the stored prompts."""
        self.evicted_tokens = 0
        """Where the prompt left the evicted prompts that the engine remembers."""
        self._tokens: list[int] = []
        self._scores: list[Score] = []
        self._prompt_scores: list[Score] = []
        self._finish_reason: FinishReason | None = None
        self._failure: ServerError | None = None
        self._group = group
        self._is_ready = False

    def admit(self) -> None:
        self.admitted_at = time.perf_counter()
        self._group.wake()

    def prefill(self, message: Prefilled) -> None:
        self.prefilled_at = time.perf_counter()
        self.cached_tokens, self.queue_seconds = message.cached_tokens, message.queue_seconds
        self.shared_tokens, self.evicted_tokens = message.shared_tokens, message.evicted_tokens

    def push_token(self, token: int) -> None:
        self._tokens.append(token)
        if not self._is_ready:
            self._notify()

    def push_score(self, score: Score) -> None:
        self._scores.append(score)

    def push_prompt_score(self, score: Score) -> None:
        self._prompt_scores.append(score)

    def finish(self, reason: FinishReason) -> None:
        self._finish_reason = reason
        self._notify()

    def fail(self, failure: ServerError) -> None:
        self._failure = failure
        self._notify()

    def take(self) -> Tokens:
        """Returns the new results. Raises the sequence's failure once all results before it were taken."""
        self._is_ready = False
        scores = prompt_scores = _NO_SCORES
        if self._failure is not None:
            self._fail_behind_tokens(self._failure)
        if self._scores or self._prompt_scores:
            scores, self._scores = self._scores, []
            prompt_scores, self._prompt_scores = self._prompt_scores, []
        token_ids, self._tokens = self._tokens, []
        return Tokens(token_ids, self._finish_reason, scores, prompt_scores)

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail_behind_tokens(self, failure: ServerError) -> None:
        if not self._tokens and self._finish_reason is None:
            raise failure
        self._notify()

    def _notify(self) -> None:
        if not self._is_ready:
            self._is_ready = True
            self._group.notify(self)


class SequenceGroup:
    """Sequences that were submitted together: an async iterator of (index, Tokens) in order of arrival.

    Only one task may iterate.
    """

    def __init__(self, count: int, cancel: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._cancel = cancel
        self._members = [Sequence(self, index) for index in range(count)]
        self._running = set(range(count))
        self._ready: deque[Sequence] = deque()
        self._waiter: asyncio.Future[None] | None = None

    @property
    def members(self) -> list[Sequence]:
        return self._members

    async def wait_until_admitted(self) -> None:
        """Raises the failure of a sequence that the engine rejects."""
        while True:
            for member in self._members:
                member.check()
            if all(member.admitted_at is not None for member in self._members):
                return
            self._waiter = self._loop.create_future()
            await self._waiter

    def __aiter__(self) -> AsyncIterator[tuple[int, Tokens]]:
        return self

    async def __anext__(self) -> tuple[int, Tokens]:
        """Raises the failure of a sequence."""
        while self._running:
            while self._ready:
                member = self._ready.popleft()
                if member.index in self._running:
                    tokens = member.take()
                    if tokens.finish_reason is not None:
                        self._running.remove(member.index)
                    return member.index, tokens
            self._waiter = self._loop.create_future()
            await self._waiter
        raise StopAsyncIteration

    def cancel(self, index: int) -> None:
        """Cancels one of the sequences. The iterator returns no more of its tokens."""
        if index in self._running:
            self._running.remove(index)
            self._cancel(index)

    def notify(self, member: Sequence) -> None:
        self._ready.append(member)
        self.wake()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
