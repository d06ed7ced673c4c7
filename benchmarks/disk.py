"""Measures the prefix cache on disk: the next turn after a restart, and the gaps of a stream while blocks are written.

As a program, `python -m benchmarks.disk MODEL FOLDER`, it measures the gaps in an engine of its own and prints JSON.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks.load import WITH_USAGE, Client
from benchmarks.patterns import TURN_TOKENS
from benchmarks.processes import ENVIRONMENT, our_server
from benchmarks.workload import StreamTimes, median_known, text_of

OUTPUT_TOKENS = 4
WRITTEN_BYTES = 100e6
PRIME_TOKENS = 2_000
STEPS = 400


@dataclass(frozen=True, slots=True)
class DiskRow:
    """Medians of the runs. `ratio` is the TTFT after a restart over that of the same prompt without a prefix cache.

    Gaps are the times of decode steps of one stream, before and while blocks are written.
    """

    model: str
    prompt_tokens: float | None
    cached_tokens: float | None
    cold_ms: float
    restarted_ms: float
    ratio: float
    written_mb: float
    gap_ms: float
    gap_p95_ms: float
    gap_writing_ms: float
    gap_writing_p95_ms: float
    gap_ratio: float


def measure(model: Path, name: str, cache: Path, runs: int, conversation_tokens: int) -> DiskRow:
    answers = [_after_restart(model, cache, conversation_tokens) for _ in range(runs)]
    cold, restarted = median(one.ttft for one, _ in answers), median(other.ttft for _, other in answers)
    gaps = [_gaps(model, cache) for _ in range(runs)]
    return DiskRow(
        model=name,
        prompt_tokens=median_known(other.prompt_tokens for _, other in answers),
        cached_tokens=median_known(other.cached_tokens for _, other in answers),
        cold_ms=1000 * cold,
        restarted_ms=1000 * restarted,
        ratio=median(other.ttft / one.ttft for one, other in answers),
        written_mb=min(gap["written"] for gap in gaps) / 1e6,
        gap_ms=1000 * median(gap["before"] for gap in gaps),
        gap_p95_ms=1000 * median(gap["before_p95"] for gap in gaps),
        gap_writing_ms=1000 * median(gap["during"] for gap in gaps),
        gap_writing_p95_ms=1000 * median(gap["during_p95"] for gap in gaps),
        gap_ratio=median(gap["during"] / gap["before"] for gap in gaps),
    )


def _after_restart(model: Path, cache: Path, tokens: int) -> tuple[StreamTimes, StreamTimes]:
    """The second turn of a new conversation: cold, and on a server that starts after the first turn."""
    rng = random.Random(time.time_ns())
    first = text_of(rng, tokens)
    second = first + text_of(rng, TURN_TOKENS)
    folder = cache / "prefixes"
    settings = {"MLX_SERVER_PREFIX_DISK_GB": "4", "MLX_SERVER_PREFIX_DISK_FOLDER": str(folder.resolve())}
    warm_up = text_of(rng, 200)
    with our_server(model, cache / "server.log") as server, Client(server.target) as client:
        client.ask(warm_up, OUTPUT_TOKENS)
        cold = client.ask(second, OUTPUT_TOKENS, **WITH_USAGE)
    with our_server(model, cache / "server.log", **settings) as server, Client(server.target) as client:
        client.ask(first, OUTPUT_TOKENS)
    with our_server(model, cache / "server.log", **settings) as server, Client(server.target) as client:
        client.ask(warm_up, OUTPUT_TOKENS)
        restarted = client.ask(second, OUTPUT_TOKENS, **WITH_USAGE)
    shutil.rmtree(folder)
    return cold, restarted


def _gaps(model: Path, cache: Path) -> dict[str, float]:
    from mlx_manager.mlx_server.engine.launch import worker_environment

    folder = (cache / "prefixes").resolve()
    command = [sys.executable, "-m", "benchmarks.disk", str(model), str(folder)]
    ran = subprocess.run(
        command, env={**worker_environment(), **ENVIRONMENT}, stdout=subprocess.PIPE, check=True, text=True
    )
    shutil.rmtree(folder)
    measured: dict[str, float] = json.loads(ran.stdout)
    return measured


def main(model: Path, folder: Path) -> None:
    import mlx.core as mx

    from mlx_manager.mlx_server.engine.core import EngineCore
    from mlx_manager.mlx_server.engine.disk_cache import DiskOptions
    from mlx_manager.mlx_server.engine.generator import load
    from mlx_manager.mlx_server.engine.messages import Submit
    from mlx_manager.mlx_server.types import SamplingParams

    mx.disable_compile()
    rng, sampling, sequence = random.Random(1), SamplingParams(seed=0, temperature=0), 0
    core = EngineCore(load(model), prefix_bytes=2**33, disk=DiskOptions(folder, 2**33, model.name, str(model), None))
    while core.prefixes.nbytes < 2.2 * WRITTEN_BYTES:
        core.submit(Submit(sequence, [rng.randrange(300, 4000) for _ in range(PRIME_TOKENS)], 2, [], sampling))
        sequence += 1
        while len(core):
            core.step()
    core.submit(Submit(sequence, [rng.randrange(300, 4000) for _ in range(50)], 10**5, [], sampling))
    _steps(core.step, 100)
    before = _steps(core.step, STEPS)
    core.limit(2**40, int(1.01 * core.prefixes.nbytes))  # what is over half of it is written now
    during: list[float] = []
    while core.disk.written_bytes < WRITTEN_BYTES:
        during += _steps(core.step, 1)
    print(json.dumps({"written": core.disk.written_bytes, **_shown("before", before), **_shown("during", during)}))


def _steps(step: Callable[[], object], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds


def _shown(name: str, seconds: list[float]) -> dict[str, float]:
    return {name: median(seconds), f"{name}_p95": quantiles(seconds, n=20)[-1]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
