"""Judges a soak: unexcused failures and memory growth. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.soak.client import Outcome
from benchmarks.soak.faults import Window
from benchmarks.soak.samples import Sample, slope

ALLOWED_API_MB = 32.0
ALLOWED_WORKER_MB = 64.0
"""Allowed memory growth of the API process and the longest-lived worker after the first quarter of their lives.
Excludes a worker's prefixes and freed buffers, which have their own limits."""
WARM_UP_SHARE = 0.25
LEAST_JUDGED_SECONDS = 60.0
"""Shortest time to judge memory growth: allocations of the first seconds are not a leak."""
PROBE_SECONDS = 10.0
"""A slower answer of /health means that the server was blocked, even on a busy machine."""
MAX_LISTED = 40
_BUSY = (429, "server_busy")


@dataclass(frozen=True, slots=True)
class Growth:
    """Growth in MB over the judged time, from the slope; None if the time is too short."""

    name: str
    gained_mb: float | None
    allowed_mb: float

    @property
    def is_too_much(self) -> bool:
        return self.gained_mb is not None and self.gained_mb > self.allowed_mb


@dataclass(frozen=True, slots=True)
class Verdict:
    failures: list[str]
    growths: list[Growth]
    excused: int

    @property
    def good(self) -> bool:
        return not self.failures and not any(growth.is_too_much for growth in self.growths)


def judge(
    outcomes: Sequence[Outcome], windows: Sequence[Window], samples: Sequence[Sample], other_failures: Sequence[str]
) -> Verdict:
    """`other_failures` are failures found elsewhere."""
    faulty = [outcome for outcome in outcomes if not is_as_wanted(outcome)]
    unexcused = [outcome for outcome in faulty if not any(window.excuses(outcome) for window in windows)]
    failures = [*other_failures, *map(describe, unexcused[:MAX_LISTED]), *_stalls(samples)]
    if len(unexcused) > MAX_LISTED:
        failures.append(f"and {len(unexcused) - MAX_LISTED} more requests")
    if not any(outcome.end == "answered" for outcome in outcomes):
        failures.append("no request was answered")
    return Verdict(failures, growths(samples), len(faulty) - len(unexcused))


def is_as_wanted(outcome: Outcome) -> bool:
    """Whether the outcome is acceptable without a fault. A full queue may reject requests at any time."""
    if outcome.end == "left":
        return outcome.status in (None, outcome.wanted_status) or (outcome.status, outcome.code) == _BUSY
    if outcome.end == "answered":
        return outcome.wanted_status == 200 == outcome.status
    if outcome.end == "refused":
        return (outcome.status, outcome.code) == _BUSY or (outcome.status == outcome.wanted_status != 200)
    return False


def describe(outcome: Outcome) -> str:
    where = f"{outcome.kind} to {outcome.model} at {outcome.at_seconds:.1f} s"
    return (
        f"{where}: {outcome.end} after {outcome.seconds:.1f} s, "
        f"status {outcome.status} (wanted {outcome.wanted_status}), code {outcome.code}: {outcome.detail} "
        f"request: {outcome.request}"
    )


def growths(samples: Sequence[Sample]) -> list[Growth]:
    lives: dict[int, list[tuple[float, float]]] = {}
    for sample in samples:
        for pid, held_mb in sample.rest_mb.items():
            lives.setdefault(pid, []).append((sample.at_seconds, held_mb))
    longest = max(lives.values(), key=len, default=[])
    api = [(sample.at_seconds, sample.api_mb) for sample in samples]
    return [
        Growth("the API process", _gained(api), ALLOWED_API_MB),
        Growth("the longest-lived worker, prefixes and freed buffers aside", _gained(longest), ALLOWED_WORKER_MB),
    ]


def _gained(points: Sequence[tuple[float, float]]) -> float | None:
    warm = points[int(len(points) * WARM_UP_SHARE) :]
    seconds = warm[-1][0] - warm[0][0] if warm else 0.0
    return seconds * slope(warm) if seconds >= LEAST_JUDGED_SECONDS else None


def _stalls(samples: Sequence[Sample]) -> list[str]:
    return [
        f"/health at {sample.at_seconds:.0f} s: "
        + ("no answer" if sample.probe_seconds is None else f"{sample.probe_seconds:.1f} s")
        for sample in samples
        if sample.probe_seconds is None or sample.probe_seconds > PROBE_SECONDS
    ]
