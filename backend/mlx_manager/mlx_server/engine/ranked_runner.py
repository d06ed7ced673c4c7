"""The runner of a model in several processes: rank 0 sends each plan to all ranks, and every rank runs it.

Only rank 0 draws tokens, so no rounding and no grammar can make the ranks differ: the others receive the drawn tokens
as a part of each step's graph. Runs in the worker, on the engine's thread.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.kv_cache import Cache
from mlx_manager.mlx_server.engine.messages import Limits
from mlx_manager.mlx_server.engine.plan import ModelFacts, Outcome, Plan
from mlx_manager.mlx_server.engine.ranks import Ranks
from mlx_manager.mlx_server.engine.runner import Runner, may_repeat_shapes

MAX_PAUSE_SECONDS = 0.05
"""Also the longest delay of a request that finds the ranks idle."""
PAUSE_PART = 20
"""Idle ranks pause for this part of the time since their last work."""


class Pause(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """No work, and none for `seconds`: a rank that waits in MLX's ring keeps a core busy."""

    seconds: float


class NewLimits(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """All ranks then agree on the memory of their KV caches."""

    limits: Limits


class ReleaseMemory(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class End(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Run(msgspec.Struct, frozen=True, tag=True, array_like=True):
    plan: Plan


Order = Run | Pause | NewLimits | ReleaseMemory | End
_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)


def next_order(ranks: Ranks) -> Order:
    """Waits for the next order of rank 0. For the other ranks."""
    return _decoder.decode(ranks.broadcast())


def runner_of_rank(model: nn.Module, ranks: Ranks, tokenizer_file: Path) -> Runner:
    """A runner whose drawn tokens are those of rank 0."""
    return Runner(
        model,
        tokenizer_file,
        repeats_shapes=bool(ranks.least([int(may_repeat_shapes(make_prompt_cache(model)))])[0]),
        share=lambda tokens, logits: ranks.of_first(tokens, after=logits),
        trial=_LogitsOfFirst(model, ranks),
    )


def common_facts(ranks: Ranks, own: ModelFacts) -> ModelFacts:
    """Facts that hold on every rank: ranks of a pipeline have different layers."""
    sizes = (own.bytes_per_token, own.bytes_per_row, own.cut_bytes_per_token, own.growing_layers)
    per_token, per_row, cut_per_token, growing_layers, needs = ranks.most([*sizes, int(own.needs_snapshots)])
    return msgspec.structs.replace(
        own,
        bytes_per_token=per_token,
        bytes_per_row=per_row,
        cut_bytes_per_token=cut_per_token,
        needs_snapshots=bool(needs),
        growing_layers=growing_layers,
    )


class RankedRunner:
    """Runs plans on all ranks, from rank 0."""

    def __init__(self, runner: Runner, ranks: Ranks) -> None:
        self.facts = common_facts(ranks, runner.facts)
        self.pause_seconds = 0.0
        """How long the other ranks pause from now on."""
        self.step_seconds = 0.0
        self.wait_seconds = 0.0
        self._runner = runner
        self._ranks = ranks
        self._worked_at = time.monotonic()

    def run(self, plan: Plan) -> Outcome:
        if not _has_content(plan):
            if not plan.wait:
                idle_seconds = time.monotonic() - self._worked_at
                self.pause_seconds = min(idle_seconds / PAUSE_PART, MAX_PAUSE_SECONDS)
                self._send(Pause(self.pause_seconds))
            return self._runner.run(plan)
        self.pause_seconds = 0.0
        began = time.monotonic()
        self._send(Run(plan))
        sent = time.monotonic()
        outcome = self._runner.run(plan)
        self._worked_at = time.monotonic()
        self.wait_seconds += sent - began
        self.step_seconds += self._worked_at - sent
        outcome.node_sizes = []  # they may differ between ranks; the estimates hold for all
        return outcome

    def least_kv_bytes(self, limits: Limits, own_bytes: int) -> int:
        """Sends the limits to all ranks. Returns the least memory for KV caches that a rank has under them."""
        self._send(NewLimits(limits))
        return self._ranks.least([own_bytes])[0]

    @property
    def cache_bytes(self) -> int:
        return self._runner.cache_bytes

    def release_memory(self) -> None:
        self._send(ReleaseMemory())
        self._runner.release_memory()

    def close(self, seconds: float) -> None:
        """Ends the other ranks."""
        self._send(End())

    def _send(self, order: Order) -> None:
        self._ranks.broadcast(msgspec.msgpack.encode(order))


def _has_content(plan: Plan) -> bool:
    return plan.decode or plan.chunk is not None or any((plan.edits, plan.preempt, plan.free, plan.begin, plan.groups))


class _LogitsOfFirst(nn.Module):  # type: ignore[misc]
    """The model with the logits of rank 0, so that all ranks judge them equally."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self._model = model
        self._of_first: Callable[[mx.array], mx.array] = ranks.of_first

    def __call__(self, inputs: mx.array, cache: Cache) -> mx.array:
        return self._of_first(self._model(inputs, cache=cache))

    def make_cache(self) -> Any:
        return make_prompt_cache(self._model)
