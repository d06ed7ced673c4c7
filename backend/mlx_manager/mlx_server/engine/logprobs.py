"""Log-probabilities of tokens by the model's own distribution: logits before penalties, bias and temperature.

Computed in one operation for all rows that request them. Runs in the worker, on the engine's thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import msgspec

from mlx_manager.mlx_server.engine.messages import Logprobs, PromptLogprobs
from mlx_manager.mlx_server.engine.sampling import top_logits

LOWEST = -9999.0
"""Replaces minus infinity, which JSON cannot represent; api.openai.com uses the same value."""


class LogprobRow(Protocol):
    @property
    def sequence(self) -> int: ...

    @property
    def logprobs(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class StepLogprobs:
    """Logprobs of a step for the sequences of `rows`. Read them together with the step's tokens."""

    rows: list[LogprobRow]
    arrays: tuple[mx.array, ...]
    """Logprobs of the chosen tokens (R,) and, if requested, the most likely tokens (R, K) and theirs (R, K)."""

    def read(self, places: dict[int, int]) -> Logprobs:
        """The logprobs of the sequences in `places`, which maps them to indices of the message."""
        columns = _columns(range(len(self.rows)), [row.logprobs or 0 for row in self.rows], self.arrays)
        kept = [i for i, row in enumerate(self.rows) if row.sequence in places]
        kept.sort(key=lambda i: places[self.rows[i].sequence])
        return msgspec.structs.replace(columns.at(kept), places=[places[self.rows[i].sequence] for i in kept])


def step_logprobs(rows: Sequence[LogprobRow], logits: mx.array, tokens: mx.array) -> StepLogprobs | None:
    """Logprobs of the token ids (B,) drawn for `rows`, from the logits (B, V). None if no row requests any."""
    requesting = [i for i, row in enumerate(rows) if row.logprobs is not None]
    if not requesting:
        return None
    if len(requesting) < len(rows):
        logits, tokens = logits[mx.array(requesting)], tokens[mx.array(requesting)]
    count = max(rows[i].logprobs or 0 for i in requesting)
    return StepLogprobs([rows[i] for i in requesting], _compute(logits, tokens, count))


def score_prompt(row: LogprobRow, begin: int, targets: list[int], logits: mx.array) -> PromptLogprobs:
    """Logprobs of the T prompt tokens after position `begin`, from the logits (T, V) from `begin` on."""
    places = range(begin + 1, begin + 1 + len(targets))
    count = row.logprobs or 0
    arrays = _compute(logits, mx.array(targets), count)
    return PromptLogprobs(row.sequence, _columns(places, [count] * len(places), arrays))


def _compute(logits: mx.array, tokens: mx.array, count: int) -> tuple[mx.array, ...]:
    logits = logits.astype(mx.float32)
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.maximum(mx.take_along_axis(logits, tokens[:, None], axis=-1) - total, LOWEST)[:, 0]
    if count == 0:
        return (chosen,)
    top_tokens, top = top_logits(logits, min(count, logits.shape[-1]))
    return chosen, top_tokens, mx.maximum(top - total, LOWEST)


def _columns(places: range, counts: list[int], arrays: tuple[mx.array, ...]) -> Logprobs:
    """Reads the arrays unchanged: a new operation on them would wait for the step in flight."""
    chosen: Any = arrays[0].tolist()
    if len(arrays) == 1:
        return Logprobs(list(places), chosen, [[] for _ in places], [[] for _ in places])
    top_tokens: Any = arrays[1].tolist()
    top: Any = arrays[2].tolist()
    return Logprobs(
        list(places),
        chosen,
        [tokens[:count] for tokens, count in zip(top_tokens, counts, strict=True)],
        [values[:count] for values, count in zip(top, counts, strict=True)],
    )
