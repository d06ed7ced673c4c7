"""Measures the first requests to a server that has just become ready, against the same kinds of requests later."""

import random
import time
from dataclasses import dataclass
from statistics import median

from benchmarks.load import run, run_waves
from benchmarks.processes import Place
from benchmarks.workload import Workload

OUTPUT_TOKENS = 16
LATER_RUNS = 3
REQUESTS: dict[str, tuple[int, dict[str, object]]] = {
    "one, greedy": (1, {}),
    "eight at once, greedy": (8, {}),
    "one, seeded": (1, {"temperature": 0.8, "seed": 7}),
    "eight at once, top-p": (8, {"temperature": 0.8, "top_p": 0.9}),
    "eight at once, top-k and penalties": (8, {"temperature": 0.8, "top_k": 40, "frequency_penalty": 0.5}),
    "eight at once, logprobs": (8, {"logprobs": 5}),
    "one, held to a regular expression": (1, {"guided_regex": "[a-z ]{500}"}),
}
"""How many requests are sent together, and their fields."""


@dataclass(frozen=True, slots=True)
class FirstRow:
    """Times to the last token. `later_ms` is the median of later runs; `first_ms` cannot be measured twice."""

    model: str
    request: str
    first_ms: float
    later_ms: float
    ratio: float


def measure(place: Place) -> list[FirstRow]:
    """`place` must have a new server."""
    rng = random.Random(time.time_ns())
    return [_measure(place, name, streams, fields, rng) for name, (streams, fields) in REQUESTS.items()]


def _measure(place: Place, name: str, streams: int, fields: dict[str, object], rng: random.Random) -> FirstRow:
    def milliseconds() -> float:
        workload = Workload(streams, 1, prompt_words=8, output_tokens=OUTPUT_TOKENS, seed=rng.randrange(2**32))
        return 1000 * run(run_waves(place.server.target, workload, **fields))[1]

    first = milliseconds()
    later = median(milliseconds() for _ in range(LATER_RUNS))
    return FirstRow(place.model, name, first, later, first / later)
