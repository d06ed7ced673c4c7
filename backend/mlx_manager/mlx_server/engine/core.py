"""The engine core: takes sequences and returns the tokens of each step. A synchronous object.

Runs in the worker, on one thread. `scheduler.py` plans a step, `runner.py` executes it. Knows no sockets, text or HTTP.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import msgspec

from mlx_manager.mlx_server.engine.disk_cache import DiskOptions
from mlx_manager.mlx_server.engine.disk_tier import DiskFigures
from mlx_manager.mlx_server.engine.kv_memory import KvMemory
from mlx_manager.mlx_server.engine.messages import Limits, Submit, UpMessage
from mlx_manager.mlx_server.engine.plan import Plan
from mlx_manager.mlx_server.engine.prefix_tree import PrefixTree
from mlx_manager.mlx_server.engine.ranked_runner import RankedRunner, runner_of_rank
from mlx_manager.mlx_server.engine.ranks import Ranks
from mlx_manager.mlx_server.engine.runner import Runner
from mlx_manager.mlx_server.engine.scheduler import Scheduler

UNPACED_SECONDS = 1e6


class EngineCore:
    """Call `submit`, `cancel` and `step` in any order, on the thread that constructed it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        kv_bytes: int = 2**62,
        prefix_bytes: int = 2**28,
        inter_token_seconds: float = 0.1,
        tokenizer_file: Path = Path("tokenizer.json"),
        repeats_shapes: bool | None = None,
        pass_bytes: int | None = None,
        disk: DiskOptions | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """`kv_bytes` limits the KV caches of sequences and stored prefixes together, `prefix_bytes` the latter.

        `repeats_shapes` and `pass_bytes` replace what the device and the model suggest. With `ranks`, this is the core
        of rank 0, and `model` its part of the model; `disk` must be None.
        """
        self._ranked: RankedRunner | None = None
        if ranks is not None:
            self._ranked = RankedRunner(runner_of_rank(model, ranks, tokenizer_file), ranks)
        self._runner = self._ranked or Runner(model, tokenizer_file, repeats_shapes, pass_bytes, disk)
        self._scheduler = Scheduler(self._runner.facts, kv_bytes, prefix_bytes, inter_token_seconds)
        if disk is not None:
            self._scheduler.note(self._runner.run(Plan()))  # what is on disk

    def __len__(self) -> int:
        """Sequences submitted and not finished."""
        return len(self._scheduler)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything. The step after a sequence's end frees its cache."""
        return self._scheduler.has_work

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._scheduler.running)

    @property
    def prefilling(self) -> int:
        """Sequences whose prompts are prefilled in part."""
        return self._scheduler.prefilling

    @property
    def peak_sequences(self) -> int:
        """The most concurrent sequences in the current busy period, or in the last one."""
        return self._scheduler.peak_sequences

    @property
    def vocabulary_size(self) -> int:
        return self._runner.facts.vocabulary_size

    @property
    def idle_seconds(self) -> float:
        """After this long without work, the core needs a step all the same."""
        return self._ranked.pause_seconds if self._ranked is not None else math.inf

    @property
    def step_seconds(self) -> float:
        """Time that rank 0 has spent in steps; 0 without ranks."""
        return self._ranked.step_seconds if self._ranked is not None else 0.0

    @property
    def wait_seconds(self) -> float:
        """Time that rank 0 has waited for the other ranks to take a plan; 0 without ranks."""
        return self._ranked.wait_seconds if self._ranked is not None else 0.0

    @property
    def memory(self) -> KvMemory:
        return self._scheduler.memory

    @property
    def prefixes(self) -> PrefixTree:
        return self._scheduler.prefixes

    @property
    def cache_bytes(self) -> int:
        """Bytes of the arrays of all sequences' KV caches."""
        return self._runner.cache_bytes

    @property
    def charged_bytes(self) -> int:
        """Bytes that the scheduler counts for them."""
        return self._scheduler.charged_bytes

    @property
    def disk(self) -> DiskFigures:
        return self._scheduler.disk.figures

    def limit(self, kv_bytes: int, prefix_bytes: int) -> None:
        """Sets limits from the next step on."""
        self._scheduler.limit(kv_bytes, prefix_bytes)

    def least_kv_bytes(self, limits: Limits, own_bytes: int) -> int:
        """The least memory for KV caches that any rank has under the limits; this process has `own_bytes`."""
        return self._ranked.least_kv_bytes(limits, own_bytes) if self._ranked is not None else own_bytes

    def submit(self, message: Submit) -> None:
        """Admits or rejects the sequence; the messages of the next `step` say which."""
        self._scheduler.submit(message, time.perf_counter())

    def cancel(self, sequence: int) -> None:
        self._scheduler.cancel(sequence)

    def step(self) -> list[UpMessage]:
        """Runs one decode step of all running sequences or, when one is due, one chunk of the waiting prompts."""
        plan = self._scheduler.plan(time.perf_counter())
        outcome = self._runner.run(plan)
        return self._scheduler.note(outcome)

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """What runs in the block leaves no trace: no prefixes, counts or measurements. For an idle engine.

        Prompts are prefilled in the largest chunks, because the times of first runs say nothing.
        """
        kept = self._scheduler
        memory_bytes, prefix_bytes = kept.memory.limit_bytes, kept.prefixes.limit_bytes
        facts = msgspec.structs.replace(self._runner.facts, disk_salt="")
        self._scheduler = Scheduler(facts, memory_bytes, prefix_bytes, UNPACED_SECONDS)
        yield
        self.limit(memory_bytes, 0)  # drops what is stored
        while self.has_work:
            self.step()
        self._scheduler = kept
        self.release_memory()
        mx.reset_peak_memory()

    def close(self, seconds: float) -> None:
        """Cancels all sequences, writes stored prefixes to disk, for at most `seconds`, and ends the other ranks."""
        deadline = time.perf_counter() + seconds
        self._scheduler.close()
        self.step()
        while self._scheduler.disk.is_writing and time.perf_counter() < deadline:
            self.step()
        self._runner.close(deadline - time.perf_counter())

    def release_memory(self) -> None:
        """Returns memory that MLX and the allocator keep for reuse to the system. For an idle engine."""
        self._runner.release_memory()
