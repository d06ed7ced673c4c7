"""What both sides are asked for, and what is measured of it."""

import random
import statistics
import string
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Workload:
    """`waves` times, `concurrency` requests at once; the next wave begins when all of the last one are answered."""

    concurrency: int
    waves: int
    prompt_words: int
    output_tokens: int
    seed: int

    def prompts(self) -> list[list[str]]:
        """Unique texts, a list for each wave; the same for the same seed."""
        rng = random.Random(self.seed)
        return [[self._prompt(rng) for _ in range(self.concurrency)] for _ in range(self.waves)]

    def _prompt(self, rng: random.Random) -> str:
        return " ".join("".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(self.prompt_words))


@dataclass(slots=True)
class StreamTimes:
    """Seconds from the start of the wave at which each chunk of one answer came, and how many tokens it held in all."""

    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one workload on one side. Times in milliseconds, CPU in microseconds per output token."""

    tokens_per_second: float
    tokens_per_chunk: float
    ttft_p50: float
    ttft_p95: float
    itl_p50: float
    itl_p95: float
    itl_max: float
    api_cpu_us: float = 0.0
    engine_cpu_us: float = 0.0
    api_peak_mb: float = 0.0
    engine_peak_mb: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def summarise(waves: list[list[StreamTimes]], wall_seconds: float, **usage: float) -> Measured:
    """Inter-token latency is the time between the chunks of one stream; 0 when every answer came in one."""
    streams = [stream for wave in waves for stream in wave]
    tokens = sum(stream.tokens for stream in streams)
    first = [1000 * stream.arrivals[0] for stream in streams]
    gaps = [
        1000 * (after - before)
        for stream in streams
        for before, after in zip(stream.arrivals, stream.arrivals[1:], strict=False)
    ] or [0.0]
    return Measured(
        tokens_per_second=tokens / wall_seconds,
        tokens_per_chunk=tokens / sum(len(stream.arrivals) for stream in streams),
        ttft_p50=statistics.median(first),
        ttft_p95=percentile(first, 95),
        itl_p50=statistics.median(gaps),
        itl_p95=percentile(gaps, 95),
        itl_max=max(gaps),
        **usage,
    )


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def median_of(runs: list[Measured]) -> Measured:
    """Field by field."""
    rows = [run.as_dict() for run in runs]
    return Measured(**{name: statistics.median(row[name] for row in rows) for name in rows[0]})
