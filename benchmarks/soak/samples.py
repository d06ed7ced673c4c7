"""Samples the memory of the server's processes every second, and measures its growth."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import httpx
import psutil

SECONDS_BETWEEN = 1.0
MB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory in MB; `workers_mb` by process id. `probe_seconds` is the latency of /health, if it answered.

    `prefixes_mb` and `buffers_mb`, by process id, are memory that workers keep on purpose: KV caches of past prompts,
    and freed memory for reuse.
    """

    at_seconds: float
    api_mb: float
    workers_mb: dict[int, float]
    descriptors: int
    threads: int
    probe_seconds: float | None
    prefixes_mb: dict[int, float] = field(default_factory=dict)
    buffers_mb: dict[int, float] = field(default_factory=dict)

    @property
    def all_mb(self) -> float:
        return self.api_mb + sum(self.workers_mb.values())

    @property
    def rest_mb(self) -> dict[int, float]:
        """Other memory of the workers: weights, KV caches in use, and the process itself."""
        kept = {pid: self.prefixes_mb.get(pid, 0.0) + self.buffers_mb.get(pid, 0.0) for pid in self.workers_mb}
        return {pid: held - kept[pid] for pid, held in self.workers_mb.items()}


@dataclass(slots=True)
class Sampler:
    base_url: str
    process: psutil.Process
    started: float
    samples: list[Sample] = field(default_factory=list)

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self.base_url, timeout=30) as http:
            for turn in itertools.count(1):
                self.samples.append(await self._sample(http))
                await asyncio.sleep(max(0.0, self.started + turn * SECONDS_BETWEEN - time.monotonic()))

    async def _sample(self, http: httpx.AsyncClient) -> Sample:
        asked = time.monotonic()
        try:
            good = (await http.get("/health")).status_code == 200
        except httpx.HTTPError:
            good = False
        took = time.monotonic() - asked
        sample = take_sample(self.process, time.monotonic() - self.started, took if good else None)
        try:
            rows = (await http.get("/admin/pool")).json()["models"]
        except httpx.HTTPError:
            return sample
        memory = {row["pid"]: row["memory"] for row in rows if row["memory"] is not None}
        return replace(
            sample,
            prefixes_mb={pid: held["prefix_bytes"] / MB for pid, held in memory.items()},
            buffers_mb={pid: held["cache_bytes"] / MB for pid, held in memory.items()},
        )


def take_sample(process: psutil.Process, at_seconds: float, probe_seconds: float | None) -> Sample:
    workers = {}
    for child in process.children(recursive=True):
        try:
            if "mlx_manager.mlx_server.engine.worker" in child.cmdline():
                workers[child.pid] = child.memory_info().rss / MB
        except psutil.Error:  # the process has exited
            continue
    with process.oneshot():
        held = process.memory_info().rss / MB
        return Sample(at_seconds, held, workers, process.num_fds(), process.num_threads(), probe_seconds)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The Theil-Sen estimator: the median slope between points, robust to outliers. Per unit of x."""
    step = max(1, len(points) // 200)  # 20,000 random pairs are enough
    pairs = itertools.combinations(points[::step], 2)
    slopes = [(later[1] - earlier[1]) / (later[0] - earlier[0]) for earlier, later in pairs if later[0] > earlier[0]]
    return median(slopes) if slopes else 0.0
