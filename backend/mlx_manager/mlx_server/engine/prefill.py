"""The prompts that wait to be decoded: taken in by chunks between decode steps, short ones together.

A step takes in either several short prompts at once or one chunk of a long one, in turn when both wait, so that neither
holds up the other. Runs in the worker, on the engine's thread.
"""

from collections import deque
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.batch import Cache, Row

CHUNK_TOKENS = 512
"""The most prompt tokens that a step takes in, and so the longest that a running stream or a cancel waits for one."""
MAX_GROUP_ROWS = 16


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Rows whose prompts are in `cache` but for their last tokens."""

    rows: list[Row]
    cache: Cache


class PrefillQueue:
    """`add` and `remove` rows; each `step` takes in some of their prompts, first come, first served among equals."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._short: deque[Row] = deque()
        self._long: deque[Row] = deque()
        self._long_cache: Cache = []
        self._long_done = 0
        self._long_is_next = False

    def __len__(self) -> int:
        return len(self._short) + len(self._long)

    def add(self, row: Row) -> None:
        (self._short if len(row.prompt) <= CHUNK_TOKENS else self._long).append(row)

    def remove(self, row: Row) -> None:
        if row in self._short:
            self._short.remove(row)
        elif row in self._long:
            if row is self._long[0]:
                self._long_cache, self._long_done = [], 0
            self._long.remove(row)

    def step(self, room: int) -> Prefilled | None:
        """Takes prompts in, for `room` rows at most; gives the rows that are ready to be decoded."""
        if self._long and (self._long_is_next or not self._short):
            self._long_is_next = False
            return self._step_long()
        self._long_is_next = True
        return self._step_short(room)

    def _step_long(self) -> Prefilled | None:
        row = self._long[0]
        if not self._long_cache:
            self._long_cache = make_prompt_cache(self._model)
        end = min(self._long_done + CHUNK_TOKENS, len(row.prompt) - 1)
        self._model(mx.array([row.prompt[self._long_done : end]]), cache=self._long_cache)
        mx.eval([cache.state for cache in self._long_cache])
        self._long_done = end
        if end < len(row.prompt) - 1:
            return None
        cache = [layer.merge([layer]) for layer in self._long_cache]
        self._long_cache, self._long_done = [], 0
        self._long.popleft()
        return Prefilled([row], cache)

    def _step_short(self, room: int) -> Prefilled:
        rows = self._take_group(room)
        inputs = [row.prompt[:-1] for row in rows]
        lengths = [len(tokens) for tokens in inputs]
        longest = max(lengths)
        caches = [make_prompt_cache(self._model) for _ in rows]
        cache = [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
        padding = [longest - length for length in lengths]
        if any(padding):
            for layer in cache:
                layer.prepare(lengths=lengths, right_padding=padding)
        if longest:
            padded = [tokens + [0] * pad for tokens, pad in zip(inputs, padding, strict=True)]
            self._model(mx.array(padded), cache=cache)
        if any(padding):
            for layer in cache:
                layer.finalize()
        mx.async_eval([layer.state for layer in cache if not layer.empty()])  # type: ignore[no-untyped-call]
        return Prefilled(rows, cache)

    def _take_group(self, room: int) -> list[Row]:
        """As many of the first short prompts as fit, padded to the longest of them, into a chunk."""
        rows: list[Row] = []
        longest = 0
        while self._short and len(rows) < min(room, MAX_GROUP_ROWS):
            longest = max(longest, len(self._short[0].prompt))
            if rows and longest * (len(rows) + 1) > CHUNK_TOKENS:
                break
            rows.append(self._short.popleft())
        return rows
