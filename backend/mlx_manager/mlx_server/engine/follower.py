"""The engine of every rank but the first: it holds its part of the model and runs what rank 0 plans."""

import sys
import time
from pathlib import Path

import mlx.core as mx
import msgspec

from mlx_manager.mlx_server.engine.generator import kv_bytes_of, load_part
from mlx_manager.mlx_server.engine.messages import (
    DownMessage,
    GeneratorFacts,
    Launch,
    Limits,
    Stats,
    Submit,
    UpMessage,
)
from mlx_manager.mlx_server.engine.plan import Plan
from mlx_manager.mlx_server.engine.ranked_runner import (
    End,
    NewLimits,
    Pause,
    ReleaseMemory,
    Run,
    common_facts,
    next_order,
    runner_of_rank,
)
from mlx_manager.mlx_server.engine.ranks import Ranks
from mlx_manager.mlx_server.machine import memory_bytes

MACHINE_SHARE = 0.75


class Follower:
    """A rank takes no messages of requests; each step waits for one order of rank 0."""

    gather_count = 0
    has_work = True
    idle_seconds = 0.0

    def __init__(self, launch: Launch, ranks: Ranks) -> None:
        self.model = load_part(launch, ranks)
        self._weights_bytes = mx.get_active_memory()
        self._ranks = ranks
        self._runner = runner_of_rank(self.model, ranks, Path(launch.folder))
        common_facts(ranks, self._runner.facts)
        self._step_seconds = self._wait_seconds = 0.0
        self.step()  # the first order has the limits

    @property
    def facts(self) -> GeneratorFacts:
        facts = self._runner.facts
        return GeneratorFacts(facts.vocabulary_size, facts.bytes_per_token, 0)

    @property
    def stats(self) -> Stats:
        return Stats(step_seconds=self._step_seconds, wait_seconds=self._wait_seconds)

    def take(self, message: DownMessage) -> None:
        raise ValueError(f"A rank cannot handle the message {type(message).__name__}.")

    def limit(self, limits: Limits) -> list[UpMessage]:
        raise ValueError("A rank gets its limits from rank 0.")

    def step(self) -> list[UpMessage]:
        began = time.monotonic()
        order = next_order(self._ranks)
        received = time.monotonic()
        match order:
            case Run(plan):
                self._runner.run(_without_draws(plan))
                self._step_seconds += time.monotonic() - received
                self._wait_seconds += received - began
            case Pause(seconds):
                time.sleep(seconds)
            case NewLimits(limits):
                self._apply(limits)
            case ReleaseMemory():
                self.release_memory()
            case End():
                sys.exit()
        return []

    def warm_up(self) -> None:
        """Rank 0 orders the work of it."""

    def close(self, seconds: float) -> None:
        """The other ranks lose this one."""

    def release_memory(self) -> None:
        self._runner.release_memory()

    def _apply(self, limits: Limits) -> None:
        own_bytes = min(limits.memory_bytes, memory_of_machine())
        mx.set_memory_limit(own_bytes)
        mx.set_cache_limit(limits.buffer_bytes)
        self._ranks.least([kv_bytes_of(own_bytes, self._weights_bytes)])


def memory_of_machine() -> int:
    """The memory that a rank may use on a machine whose budget rank 0 does not know."""
    info = mx.device_info()
    device = info.get("max_recommended_working_set_size", info.get("total_memory"))
    return int(device) if device is not None else int(memory_bytes() * MACHINE_SHARE)


def _without_draws(plan: Plan) -> Plan:
    """The plan without the grammars, which only constrain draws."""
    return msgspec.structs.replace(plan, begin=list(map(_unconstrained, plan.begin)))


def _unconstrained(message: Submit) -> Submit:
    return msgspec.structs.replace(message, grammar=None, thinking=None)
