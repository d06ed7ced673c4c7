"""Measures the time to the first token of prompts with lengths that the server has not seen, against known lengths."""

import random
import time
from dataclasses import dataclass
from statistics import median

from benchmarks.load import Client
from benchmarks.processes import Place
from benchmarks.workload import text_of

OUTPUT_TOKENS = 2
SHORTEST_TOKENS = 40
KNOWN_RUNS = 3


@dataclass(frozen=True, slots=True)
class LengthsRow:
    """Medians over the lengths. The longest ratio is that of a single length."""

    model: str
    lengths: int
    new_ms: float
    known_ms: float
    ratio: float
    longest_ratio: float


def measure(place: Place, lengths: int, longest_tokens: int) -> LengthsRow:
    """Measures that many different lengths. `place` must have a new server."""
    rng = random.Random(0)
    new, known = [], []
    with Client(place.server.target) as client:
        client.ask(text_of(rng, SHORTEST_TOKENS - 2), OUTPUT_TOKENS)
        rng = random.Random(time.time_ns())  # a text that an earlier run sent would be in the prefix cache
        for tokens in rng.sample(range(SHORTEST_TOKENS, longest_tokens, 2), lengths):
            new.append(client.ask(text_of(rng, tokens), OUTPUT_TOKENS).ttft)
            known.append(median(client.ask(text_of(rng, tokens), OUTPUT_TOKENS).ttft for _ in range(KNOWN_RUNS)))
    ratios = [first / later for first, later in zip(new, known, strict=True)]
    return LengthsRow(place.model, lengths, 1000 * median(new), 1000 * median(known), median(ratios), max(ratios))
