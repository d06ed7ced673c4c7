"""Measures the load generator's own limit, the upper bound of every server's throughput."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from benchmarks.load import Target, run, run_waves
from benchmarks.workload import Workload

CHUNKS = 20_000
"""Total of all streams, in one run."""


@dataclass(frozen=True, slots=True)
class CeilingRow:
    """Medians of the runs. CPU is the generator's, per chunk."""

    streams: int
    chunks_per_second: float
    cpu_us: float


def measure(streams: int, runs: int) -> CeilingRow:
    rates: list[float] = []
    cpu: list[float] = []
    workload = Workload(streams, waves=1, prompt_words=8, output_tokens=CHUNKS // streams, seed=0)
    chunks = streams * workload.output_tokens
    with chunk_server() as target:
        for _ in range(runs):
            before = time.process_time()
            _, seconds = run(run_waves(target, workload))
            cpu.append((time.process_time() - before) / chunks)
            rates.append(chunks / seconds)
    return CeilingRow(streams, median(rates), 1e6 * median(cpu))


@contextmanager
def chunk_server() -> Iterator[Target]:
    command = [sys.executable, "-m", "benchmarks.chunk_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Target(f"http://127.0.0.1:{int(process.stdout.readline())}", "chunks")
