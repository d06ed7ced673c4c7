"""`make soak MINUTES=10`: mixed traffic and faults on a server of its own. Exits with status 1 on failure."""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.soak.chart import draw
from benchmarks.soak.client import Outcome, SoakClient
from benchmarks.soak.faults import Faults
from benchmarks.soak.report import Soak, kinds_table, markdown, minutes_table, verdict_text
from benchmarks.soak.samples import Sampler
from benchmarks.soak.stage import Stage, staged_server
from benchmarks.soak.traffic import LONGEST_PROMPT, planned_burst, planned_traffic
from benchmarks.soak.verdict import judge

CLIENTS = 6
THINK_SECONDS = 0.2
BURST_REQUESTS = 100
SECONDS_BETWEEN_BURSTS = 20.0
CALM_SHARE = 0.1
"""Share of the time at the end that has no faults."""
CHART, REPORT = "soak.svg", "soak.md"


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="mlx-manager-soak-") as scratch:
        folder = options.output if options.output is not None else Path(scratch)
        with staged_server(folder) as stage:
            soak, failures = asyncio.run(_soak(stage, options.minutes * 60, options.seed))
        verdict = judge(soak.outcomes, soak.windows, soak.samples, [*failures, *stage.failures])
        if options.output is not None:
            draw(soak, folder / CHART)
            (folder / REPORT).write_text(markdown(soak, verdict, CHART))
    print(minutes_table(soak), kinds_table(soak.outcomes), verdict_text(verdict), sep="\n\n")
    sys.exit(0 if verdict.good else 1)


async def _soak(stage: Stage, seconds: float, seed: int) -> tuple[Soak, list[str]]:
    """Runs the soak. Returns all observations and the faults' failures."""
    await _warm_up(stage)
    before, started = stage.sample(), time.monotonic()
    outcomes: list[Outcome] = []
    sampler = Sampler(stage.url, stage.process, started)
    faults = Faults(stage.url, stage.process, stage.settings_file, started)
    client = SoakClient(stage.url, started)
    sampling = asyncio.create_task(sampler.run())
    try:
        async with asyncio.TaskGroup() as running:
            for number in range(CLIENTS):
                dice = random.Random(f"{seed}: client {number}")
                running.create_task(_visit(client, faults, dice, started + seconds, outcomes))
            running.create_task(_burst(client, random.Random(f"{seed}: bursts"), started + seconds, outcomes))
            calm_from = seconds * (1 - CALM_SHARE)
            running.create_task(faults.run(random.Random(f"{seed}: faults"), calm_from, _interval(seconds)))
        await client.aclose()
        await asyncio.to_thread(stage.check_quiet, before)
    finally:
        sampling.cancel()
        await client.aclose()
        await faults.aclose()
    lasted = time.monotonic() - started
    return Soak(lasted, seed, outcomes, faults.windows, sampler.samples), faults.failures


async def _warm_up(stage: Stage) -> None:
    """Sends the largest burst first, so that the API process's memory for it does not look like a leak."""
    client, dice = SoakClient(stage.url, time.monotonic()), random.Random(0)
    for planned in [LONGEST_PROMPT] * CLIENTS, [planned_burst(dice) for _ in range(BURST_REQUESTS)]:
        await asyncio.gather(*map(client.send, planned))
    await client.aclose()


async def _visit(
    client: SoakClient, faults: Faults, dice: random.Random, until: float, outcomes: list[Outcome]
) -> None:
    """One client: sends requests in sequence until the end."""
    while time.monotonic() < until:
        outcomes.append(await client.send(planned_traffic(dice, faults.other)))
        await asyncio.sleep(dice.uniform(0, THINK_SECONDS))


async def _burst(client: SoakClient, dice: random.Random, until: float, outcomes: list[Outcome]) -> None:
    while True:
        wait_seconds = dice.uniform(0.5, 1.5) * SECONDS_BETWEEN_BURSTS
        if time.monotonic() + wait_seconds > until:
            return
        await asyncio.sleep(wait_seconds)
        outcomes += await asyncio.gather(*(client.send(planned_burst(dice)) for _ in range(BURST_REQUESTS)))


def _interval(seconds: float) -> float:
    """Pause between faults; shorter in a short soak."""
    return min(15.0, max(2.0, seconds / 12))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="the same traffic and faults every time")
    parser.add_argument("--output", type=Path, help=f"a folder for {CHART}, {REPORT} and the server's log")
    return parser.parse_args()


if __name__ == "__main__":
    main()
