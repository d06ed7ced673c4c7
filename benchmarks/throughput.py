"""Measures throughput, latencies and CPU of the server against the raw engine, in alternation."""

import gc
import time
from dataclasses import dataclass

from benchmarks.load import run, run_waves
from benchmarks.processes import Place, Server
from benchmarks.workload import Measured, Workload, median_known, median_of, summarise


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of all runs; `efficiency` and `over_lean` are medians of the runs' ratios to raw engine and lean loop."""

    model: str
    concurrency: int
    server: Measured
    raw: Measured | None
    efficiency: float | None
    lean_tokens_per_second: float | None = None
    over_lean: float | None = None


def measure(place: Place, concurrency: int, runs: int, output_tokens: int) -> Row:
    def workload(attempt: int, waves: int) -> Workload:
        seed = 1000 * concurrency + attempt
        return Workload(concurrency, waves, prompt_words=8, output_tokens=output_tokens, seed=seed)

    of_server, of_raw, of_lean = [], [], []
    warm_up = workload(runs, waves=1)
    _run_server(place.server, warm_up)
    if place.raw is not None:
        place.raw.run(warm_up)
        place.raw.lean_rate(warm_up)
    for attempt in range(runs):
        of_server.append(_run_server(place.server, workload(attempt, waves=5)))
        if place.raw is not None:
            of_raw.append(place.raw.run(workload(attempt, waves=5)))
            of_lean.append(place.raw.lean_rate(workload(attempt, waves=5)))
    pairs = zip(of_server, of_raw, strict=place.raw is not None)
    over_lean = zip(of_server, of_lean, strict=place.raw is not None)
    return Row(
        place.model,
        concurrency,
        median_of(of_server),
        median_of(of_raw) if of_raw else None,
        median_known(ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in pairs),
        median_known(of_lean),
        median_known(ours.tokens_per_second / lean for ours, lean in over_lean),
    )


def _run_server(server: Server, workload: Workload) -> Measured:
    gc.collect()
    per_token = 1e6 / (workload.waves * workload.concurrency * workload.output_tokens)
    before, generator_before = server.cpu(), time.process_time()
    waves, seconds = run(run_waves(server.target, workload))
    after, generator_after = server.cpu(), time.process_time()
    generator_cpu_us = per_token * (generator_after - generator_before)
    peak = server.peak_memory()
    if before is None or after is None or peak is None:
        return summarise(waves, seconds, generator_cpu_us=generator_cpu_us)
    return summarise(
        waves,
        seconds,
        api_cpu_us=per_token * (after.api_cpu_seconds - before.api_cpu_seconds),
        engine_cpu_us=per_token * (after.engine_cpu_seconds - before.engine_cpu_seconds),
        generator_cpu_us=generator_cpu_us,
        api_peak_mb=peak.api_mb,
        engine_peak_mb=peak.engine_mb,
    )
