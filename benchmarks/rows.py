"""Measures the engine's batch without a server: a long row beside short ones, and a burst of prompts.

The benchmark starts it as `python -m benchmarks.rows MODEL`, and it answers with a line of JSON.
"""

import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.processes import ENVIRONMENT
from mlx_manager.mlx_server.engine.messages import Step, Submit, UpMessage
from mlx_manager.mlx_server.types import SamplingParams

if TYPE_CHECKING:
    import mlx.nn as nn

    from mlx_manager.mlx_server.engine.compiled_decode import Decoder
    from mlx_manager.mlx_server.engine.core import EngineCore

ROWS = 16
LONG_TOKENS = 16_000
SHORT_TOKENS = 500
STEPS = 60
BURST = 63
BURST_TOKENS = 40
GRAPH_ROWS = 8


@dataclass(frozen=True, slots=True)
class RowsRow:
    """Medians of the runs, except the gap, the longest of all runs.

    `even`: all rows have SHORT_TOKENS. `mixed`: one of them has LONG_TOKENS. Memory is that of the mixed rows' caches:
    of the tokens in them, of the arrays, and what the scheduler counts. The gap is that of a stream while BURST prompts
    join it. The graph is that of a decode step of GRAPH_ROWS rows: the time to build it, or to replay it.
    """

    model: str
    even_tokens_per_second: float
    mixed_tokens_per_second: float
    ratio: float
    tokens_mb: float
    held_mb: float
    charged_mb: float
    longest_gap_ms: float
    chunk_ms: float
    step_ms: float
    graph_ms: float
    compiled_graph_ms: float


def measure(folder: Path, model: str, runs: int) -> RowsRow:
    from mlx_manager.mlx_server.engine.launch import worker_environment

    command = [sys.executable, "-m", "benchmarks.rows", str(folder)]
    environment = {**worker_environment(), **ENVIRONMENT}
    found = []
    for _ in range(runs):
        printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(printed.splitlines()[-1]))
    even, mixed = (median(run[name] for run in found) for name in ("even", "mixed"))
    return RowsRow(
        model=model,
        even_tokens_per_second=even,
        mixed_tokens_per_second=mixed,
        ratio=median(run["mixed"] / run["even"] for run in found),
        tokens_mb=median(run["tokens_mb"] for run in found),
        held_mb=median(run["held_mb"] for run in found),
        charged_mb=median(run["charged_mb"] for run in found),
        longest_gap_ms=max(run["gap"] for run in found),
        chunk_ms=median(run["chunk"] for run in found),
        step_ms=median(run["step"] for run in found),
        graph_ms=median(run["graph"] for run in found),
        compiled_graph_ms=median(run["compiled_graph"] for run in found),
    )


def main() -> None:
    from mlx_manager.mlx_server.engine.generator import load

    bench = _Bench(load(Path(sys.argv[1])))
    print(json.dumps(bench.rates() | bench.burst() | bench.graphs()))


class _Bench:
    """Runs the engine's core in this process."""

    def __init__(self, model: "nn.Module") -> None:
        self._model = model
        self._rng = random.Random(time.time_ns())

    def rates(self) -> dict[str, float]:
        even, _ = self._filled([SHORT_TOKENS] * ROWS)
        answer = {"even": _rate(even)}
        mixed, tokens = self._filled([LONG_TOKENS] + [SHORT_TOKENS] * (ROWS - 1))
        answer["tokens_mb"] = tokens * mixed.memory.bytes_per_token / 1e6
        answer["held_mb"], answer["charged_mb"] = mixed.cache_bytes / 1e6, mixed.charged_bytes / 1e6
        return answer | {"mixed": _rate(mixed)}

    def burst(self) -> dict[str, float]:
        """Milliseconds: the longest gap of a stream, its longest chunk, and a decode step when all have joined."""
        core, _ = self._filled([BURST_TOKENS])
        for sequence in range(1, BURST + 1):
            self._submit(core, sequence, BURST_TOKENS)
        gaps: list[float] = []
        chunks: list[float] = []
        steps: list[float] = []
        told = time.perf_counter()
        while core.running <= BURST or len(steps) < STEPS:
            began = time.perf_counter()
            decodes = _generated(core.step()) > 0
            now = time.perf_counter()
            if decodes:
                gaps.append(now - told)
                told = now
            if core.running > BURST:
                steps.append(now - began)
            elif not decodes:
                chunks.append(now - began)
        return {"gap": 1000 * max(gaps), "chunk": 1000 * max(chunks), "step": 1000 * median(steps)}

    def graphs(self) -> dict[str, float]:
        """Milliseconds to build the graph of a decode step, and to replay the compiled one."""
        from mlx_manager.mlx_server.engine.compiled_decode import CompiledDecode

        plain, compiled = (self._graph_seconds(model) for model in (self._model, CompiledDecode(self._model)))
        return {"graph": 1000 * plain, "compiled_graph": 1000 * compiled}

    def _graph_seconds(self, model: "Decoder") -> float:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        from mlx_manager.mlx_server.engine.kv_cache import RowsCache

        rows = [RowsCache.alone(make_prompt_cache(self._model), 0) for _ in range(GRAPH_ROWS)]
        batch = RowsCache.merge(rows, exact=False, slots=GRAPH_ROWS, tokens=256)
        batch.prefill(self._model, [[10] * (2 + row) for row in range(GRAPH_ROWS)], queries=32)
        mx.eval(list(batch.arrays()))
        seconds = []
        for _ in range(STEPS):
            began = time.perf_counter()
            logits = batch.decode(model, mx.full((GRAPH_ROWS,), 10))
            seconds.append(time.perf_counter() - began)
            mx.eval(logits, list(batch.arrays()))
        return median(seconds)

    def _filled(self, lengths: list[int]) -> "tuple[EngineCore, int]":
        """A core that decodes rows of these lengths, and the tokens that they have. The first is prefilled alone."""
        from mlx_manager.mlx_server.engine.core import EngineCore

        core, tokens = EngineCore(self._model, prefix_bytes=0), sum(lengths)
        for sequence, length in enumerate(lengths):
            self._submit(core, sequence, length)
            while sequence in (0, len(lengths) - 1) and core.running <= sequence:
                tokens += _generated(core.step())
        return core, tokens

    def _submit(self, core: "EngineCore", sequence: int, tokens: int) -> None:
        prompt = self._rng.choices(range(10, 4000), k=tokens)
        core.submit(Submit(sequence, prompt, 2000, [], SamplingParams(temperature=0, seed=0)))


def _generated(events: list[UpMessage]) -> int:
    return sum(len(event.tokens) for event in events if isinstance(event, Step))


def _rate(core: "EngineCore") -> float:
    """Tokens per second."""
    for _ in range(4):
        core.step()
    began = time.perf_counter()
    for _ in range(STEPS):
        core.step()
    return STEPS * core.running / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
