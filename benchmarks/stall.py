"""Measures how a long prompt and running streams delay each other."""

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.load import Client, StreamConnection, Target, run
from benchmarks.processes import PeakMemory, Place
from benchmarks.streams import RunningStreams
from benchmarks.workload import text_of

STREAMS = 4
PROMPT_TOKENS = 16
OUTPUT_TOKENS = 4
SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class StallRow:
    """Medians of the runs, except the gap, the longest of all runs. Rates count the chunks of all streams."""

    model: str
    streams: int
    long_prompt_tokens: int
    chunks_per_second_before: float
    chunks_per_second_during: float
    rate_kept: float
    longest_gap_ms: float
    long_ttft_ms: float
    long_ttft_alone_ms: float
    ttft_ratio: float
    memory: PeakMemory | None


@dataclass(frozen=True, slots=True)
class Stall:
    rate_before: float
    rate_during: float
    longest_gap: float
    ttft: float


def measure(place: Place, runs: int, long_prompt_tokens: int) -> StallRow:
    rng = random.Random(time.time_ns())
    target = place.server.target
    alone: list[float] = []
    beside: list[Stall] = []
    with Client(target) as client:
        client.ask(text_of(rng, long_prompt_tokens), OUTPUT_TOKENS)
        for _ in range(runs):
            alone.append(client.ask(text_of(rng, long_prompt_tokens), OUTPUT_TOKENS).ttft)
            beside.append(run(_beside_streams(target, text_of(rng, long_prompt_tokens), rng)))
    return StallRow(
        model=place.model,
        streams=STREAMS,
        long_prompt_tokens=long_prompt_tokens,
        chunks_per_second_before=median(stall.rate_before for stall in beside),
        chunks_per_second_during=median(stall.rate_during for stall in beside),
        rate_kept=median(stall.rate_during / stall.rate_before for stall in beside),
        longest_gap_ms=1000 * max(stall.longest_gap for stall in beside),
        long_ttft_ms=1000 * median(stall.ttft for stall in beside),
        long_ttft_alone_ms=1000 * median(alone),
        ttft_ratio=median(stall.ttft / seconds for stall, seconds in zip(beside, alone, strict=True)),
        memory=place.server.peak_memory(),
    )


async def _beside_streams(target: Target, long_prompt: str, rng: random.Random) -> Stall:
    prompts = [text_of(rng, PROMPT_TOKENS) for _ in range(STREAMS)]
    started = time.perf_counter()
    async with RunningStreams(target, prompts, started) as streams:
        await streams.grow(by=10)
        connection = await StreamConnection.open(target)
        before = time.perf_counter() - started
        await asyncio.sleep(SETTLE_SECONDS)
        sent = time.perf_counter() - started
        times = await connection.stream(target.request(long_prompt, OUTPUT_TOKENS), OUTPUT_TOKENS, started)
        connection.close()
        await streams.grow(by=1)
        return stall_of(streams.arrivals(), before, sent, first=times.arrivals[0])


def stall_of(arrivals: Sequence[list[float]], before: float, sent: float, first: float) -> Stall:
    """From `before` to `sent` only the streams run; from `sent` to `first` the server prefills the long prompt."""

    def rate(begin: float, end: float) -> float:
        return sum(begin < arrival <= end for stream in arrivals for arrival in stream) / (end - begin)

    gaps = [
        later - earlier
        for stream in arrivals
        for earlier, later in itertools.pairwise(stream)
        if later > sent and earlier < first
    ]
    return Stall(rate(before, sent), rate(sent, first), max(gaps), first - sent)
