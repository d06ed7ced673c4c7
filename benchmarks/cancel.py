"""Measures how soon the engine is idle after all clients disconnect in the middle of their answers."""

import asyncio
import random
import time
from dataclasses import dataclass
from statistics import median

from benchmarks.load import ACCEPT_SECONDS, Client, StreamConnection, Target, run
from benchmarks.processes import PeakMemory, Place, Server
from benchmarks.streams import RunningStreams
from benchmarks.workload import median_known, text_of

STREAMS = 8
PROMPT_TOKENS = 16
OUTPUT_TOKENS = 4
IDLE_SECONDS = 0.1
"""The workers count as idle once they use no CPU for this long..."""
TICK_SECONDS = 0.01
"""...except one tick of the system's CPU clock, for heartbeats."""
GIVE_UP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class CancelRow:
    """Medians of the runs. `idle_ms`: from the disconnect until the workers use no CPU; None for other servers."""

    model: str
    streams: int
    idle_ms: float | None
    ttft_alone_ms: float
    next_ttft_ms: float
    ttft_ratio: float
    memory: PeakMemory | None


def measure(place: Place, runs: int) -> CancelRow:
    rng = random.Random(time.time_ns())
    server = place.server
    idle: list[float | None] = []
    alone: list[float] = []
    after_drop: list[float] = []
    with Client(server.target) as client:
        client.ask(text_of(rng, PROMPT_TOKENS), OUTPUT_TOKENS)
        for _ in range(runs):
            alone.append(client.ask(text_of(rng, PROMPT_TOKENS), OUTPUT_TOKENS).ttft)
            after_drop.append(run(_next_ttft(server.target, rng)))
            idle.append(run(_idle_after(server, rng)) if server.process is not None else None)
    idle_seconds = median_known(idle)
    return CancelRow(
        model=place.model,
        streams=STREAMS,
        idle_ms=1000 * idle_seconds if idle_seconds is not None else None,
        ttft_alone_ms=1000 * median(alone),
        next_ttft_ms=1000 * median(after_drop),
        ttft_ratio=median(after_drop) / median(alone),
        memory=server.peak_memory(),
    )


async def _next_ttft(target: Target, rng: random.Random) -> float:
    async with _streams(target, rng) as streams:
        await streams.grow(by=20)
        connection = await StreamConnection.open(target)
        request = target.request(text_of(rng, PROMPT_TOKENS), OUTPUT_TOKENS)
        await asyncio.sleep(ACCEPT_SECONDS)
        streams.drop()
        await asyncio.sleep(0)  # the loop closes the sockets
        times = await connection.stream(request, OUTPUT_TOKENS, time.perf_counter())
        connection.close()
        return times.ttft


async def _idle_after(server: Server, rng: random.Random) -> float:
    async with _streams(server.target, rng) as streams:
        await streams.grow(by=20)
        streams.drop()
        readings = [(time.perf_counter(), server.worker_cpu_seconds())]
        while readings[-1][0] - readings[0][0] < GIVE_UP_SECONDS:
            await asyncio.sleep(0.005)
            readings.append((time.perf_counter(), server.worker_cpu_seconds()))
            idle = idle_from(readings)
            if idle is not None:
                return idle - readings[0][0]
    return GIVE_UP_SECONDS


def idle_from(readings: list[tuple[float, float]]) -> float | None:
    """The start of the IDLE_SECONDS without CPU that end with the last reading (time, CPU seconds), if any."""
    last, cpu_now = readings[-1]
    for moment, cpu in readings:
        if last - moment >= IDLE_SECONDS and cpu_now - cpu <= TICK_SECONDS:
            return moment
    return None


def _streams(target: Target, rng: random.Random) -> RunningStreams:
    return RunningStreams(target, [text_of(rng, PROMPT_TOKENS) for _ in range(STREAMS)], time.perf_counter())
