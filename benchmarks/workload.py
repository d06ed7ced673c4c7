"""The workloads for both sides, and their metrics."""

import random
import statistics
import string
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Workload:
    """`waves` waves of `concurrency` requests; a wave starts after all requests of the last one are answered."""

    concurrency: int
    waves: int
    prompt_words: int
    output_tokens: int
    seed: int
    batch_rows: int | None = None
    """Batch rows of the raw engine; `concurrency` if None."""

    def prompts(self) -> list[list[str]]:
        """Unique texts, a list for each wave; a seed always gives the same texts."""
        rng = random.Random(self.seed)
        return [[self._prompt(rng) for _ in range(self.concurrency)] for _ in range(self.waves)]

    def _prompt(self, rng: random.Random) -> str:
        return " ".join("".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(self.prompt_words))


@dataclass(frozen=True, slots=True)
class ReadyPrompt:
    """One prompt. The raw engine has its first `ready_tokens` tokens in the KV cache before the clock starts."""

    prompt: str
    ready_tokens: int


def text_of(rng: random.Random, tokens: int) -> str:
    """A text of `tokens` tokens (an even number) in both of the benchmark's models, also inside a longer text.

    Two letters are one token and the space after them is another; no merge crosses a space.
    """
    assert tokens % 2 == 0, tokens
    return "".join("".join(rng.choices(string.ascii_lowercase, k=2)) + " " for _ in range(tokens // 2))


@dataclass(slots=True)
class StreamTimes:
    """Arrival times of the chunks of one answer, in seconds from the start of the wave, and its token count.

    Prompt figures are None if the server does not report them.
    """

    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def ttft(self) -> float:
        return self.arrivals[0]


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics of one workload on one side. Times in ms, CPU in microseconds per output token; None: unknown."""

    tokens_per_second: float
    tokens_per_chunk: float
    ttft_p50: float
    ttft_p95: float
    ttft_max: float
    itl_p50: float
    itl_p95: float
    itl_max: float
    api_cpu_us: float | None = None
    engine_cpu_us: float | None = None
    generator_cpu_us: float | None = None
    api_peak_mb: float | None = None
    engine_peak_mb: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(waves: list[list[StreamTimes]], wall_seconds: float, **usage: float | None) -> Measured:
    """Inter-token latency is the time between the chunks of one stream; 0 if every answer is a single chunk."""
    streams = [stream for wave in waves for stream in wave]
    tokens = sum(stream.tokens for stream in streams)
    first = [1000 * stream.ttft for stream in streams]
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
        ttft_max=max(first),
        itl_p50=statistics.median(gaps),
        itl_p95=percentile(gaps, 95),
        itl_max=max(gaps),
        **usage,
    )


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def median_of(runs: list[Measured]) -> Measured:
    """The median of each field."""
    rows = [run.as_dict() for run in runs]
    medians: dict[str, Any] = {name: median_known(row[name] for row in rows) for name in rows[0]}
    return Measured(**medians)


def median_known(values: Iterable[float | None]) -> float | None:
    """The median of the known values; None if all are unknown."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ratio(ours: float, theirs: float | None) -> float | None:
    return ours / theirs if theirs is not None else None
