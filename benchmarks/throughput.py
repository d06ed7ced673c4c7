"""Output tokens per second, latencies and CPU of the server against the raw engine, in alternation."""

import asyncio
import gc
from dataclasses import dataclass

from benchmarks.load import run_waves
from benchmarks.processes import RawEngine, Server
from benchmarks.workload import Measured, Workload, median_of, summarise


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of all runs; `efficiency` is the median of the runs' own ratios, server to raw."""

    model: str
    concurrency: int
    server: Measured
    raw: Measured | None
    efficiency: float | None


def measure(server: Server, raw: RawEngine | None, model: str, concurrency: int, runs: int, output_tokens: int) -> Row:
    def workload(run: int, waves: int) -> Workload:
        seed = 1000 * concurrency + run
        return Workload(concurrency, waves, prompt_words=8, output_tokens=output_tokens, seed=seed)

    of_server, of_raw = [], []
    warm_up = workload(runs, waves=1)
    _run_server(server, warm_up)
    if raw is not None:
        raw.run(warm_up)
    for run in range(runs):
        of_server.append(_run_server(server, workload(run, waves=5)))
        if raw is not None:
            of_raw.append(raw.run(workload(run, waves=5)))
    pairs = zip(of_server, of_raw, strict=raw is not None)
    ratios = [ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in pairs]
    return Row(
        model,
        concurrency,
        median_of(of_server),
        median_of(of_raw) if of_raw else None,
        sorted(ratios)[len(ratios) // 2] if ratios else None,
    )


def _run_server(server: Server, workload: Workload) -> Measured:
    gc.collect()
    before = server.cpu()
    waves, seconds = asyncio.run(run_waves(server.target, workload))
    after = server.cpu()
    tokens = workload.waves * workload.concurrency * workload.output_tokens
    api_peak, engine_peak = server.peak_mb()
    return summarise(
        waves,
        seconds,
        api_cpu_us=1e6 * (after.api_cpu_seconds - before.api_cpu_seconds) / tokens,
        engine_cpu_us=1e6 * (after.engine_cpu_seconds - before.engine_cpu_seconds) / tokens,
        api_peak_mb=api_peak,
        engine_peak_mb=engine_peak,
    )
