"""Measures the cost of a feature: the rate of streams that all use it, against plain streams on the same server."""

from dataclasses import dataclass
from statistics import median

from benchmarks.load import run, run_waves
from benchmarks.processes import PeakMemory, Place
from benchmarks.workload import Workload

STREAMS = 8
WAVES = 3
FEATURES: dict[str, dict[str, object]] = {
    "own temperature, top-p, top-k and seed": {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 7},
    "logprobs, the top five": {"logprobs": 5},
    "held to a regular expression": {"guided_regex": "[a-z ]{5000}"},
}
"""Fields of OpenAI's Completions, and extensions as vLLM names them."""


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """Medians of the alternated runs; `ratio` is the median of the ratios of the runs."""

    model: str
    feature: str
    streams: int
    plain_tokens_per_second: float
    tokens_per_second: float
    ratio: float
    memory: PeakMemory | None


def measure(place: Place, runs: int, output_tokens: int) -> list[FeatureRow]:
    return [_measure(place, feature, runs, output_tokens) for feature in FEATURES]


def _measure(place: Place, feature: str, runs: int, output_tokens: int) -> FeatureRow:
    plain, featured = [], []
    _rate(place, Workload(STREAMS, 1, prompt_words=8, output_tokens=8, seed=runs), FEATURES[feature])
    for attempt in range(runs):
        workload = Workload(STREAMS, WAVES, prompt_words=8, output_tokens=output_tokens, seed=attempt)
        plain.append(_rate(place, workload, {}))
        featured.append(_rate(place, workload, FEATURES[feature]))
    return FeatureRow(
        place.model,
        feature,
        STREAMS,
        median(plain),
        median(featured),
        median(ours / theirs for ours, theirs in zip(featured, plain, strict=True)),
        place.server.peak_memory(),
    )


def _rate(place: Place, workload: Workload, extra: dict[str, object]) -> float:
    _, seconds = run(run_waves(place.server.target, workload, **extra))
    return workload.concurrency * workload.waves * workload.output_tokens / seconds
