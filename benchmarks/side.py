"""Measures short requests during a long prefill, as agents send them with every turn for titles and classification."""

import asyncio
import random
import time
from dataclasses import dataclass
from statistics import median

from benchmarks.load import ACCEPT_SECONDS, Client, StreamConnection, Target, run
from benchmarks.processes import PeakMemory, Place
from benchmarks.workload import text_of

SIDE_TOKENS = 600
OUTPUT_TOKENS = 4
SIDE_REQUESTS = 3
"""Short requests in sequence, during each long prompt."""
SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SideRow:
    """TTFT of the short prompts. The client then drops the long prompt."""

    model: str
    long_prompt_tokens: int
    side_tokens: int
    alone_ms: float
    beside_ms: float
    longest_beside_ms: float
    later_ms: float
    """The difference of the medians. A chunk of the long prompt takes up to half a second."""
    memory: PeakMemory | None


def measure(place: Place, runs: int, long_prompt_tokens: int) -> SideRow:
    rng = random.Random(time.time_ns())
    target = place.server.target
    alone: list[float] = []
    beside: list[float] = []
    with Client(target) as client:
        client.ask(text_of(rng, SIDE_TOKENS), OUTPUT_TOKENS)
        for _ in range(runs):
            alone.append(client.ask(text_of(rng, SIDE_TOKENS), OUTPUT_TOKENS).ttft)
            beside += run(_beside_long_prompt(target, rng, long_prompt_tokens))
    return SideRow(
        model=place.model,
        long_prompt_tokens=long_prompt_tokens,
        side_tokens=SIDE_TOKENS,
        alone_ms=1000 * median(alone),
        beside_ms=1000 * median(beside),
        longest_beside_ms=1000 * max(beside),
        later_ms=1000 * (median(beside) - median(alone)),
        memory=place.server.peak_memory(),
    )


async def _beside_long_prompt(target: Target, rng: random.Random, long_prompt_tokens: int) -> list[float]:
    """Seconds to the first token of each short prompt. Raises RuntimeError if the long one is answered first."""
    started = time.perf_counter()
    long, side = await StreamConnection.open(target), await StreamConnection.open(target)
    request = target.request(text_of(rng, long_prompt_tokens), OUTPUT_TOKENS)
    answering = asyncio.create_task(long.stream(request, OUTPUT_TOKENS, started))
    await asyncio.sleep(SETTLE_SECONDS)
    seconds = []
    for _ in range(SIDE_REQUESTS):
        await asyncio.sleep(ACCEPT_SECONDS + rng.random() / 2)
        request = target.request(text_of(rng, SIDE_TOKENS), OUTPUT_TOKENS)
        seconds.append((await side.stream(request, OUTPUT_TOKENS, time.perf_counter())).ttft)
        if long.times.arrivals:
            raise RuntimeError(
                f"a prompt of {long_prompt_tokens} tokens was answered first. Raise --side-prompt-tokens."
            )
    long.close()
    side.close()
    await asyncio.gather(answering, return_exceptions=True)
    await asyncio.sleep(SETTLE_SECONDS)  # wait for the end of the current chunk
    return seconds
