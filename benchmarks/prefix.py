"""Measures TTFT when most of the prompt was sent before, against the raw engine with the same KV cache."""

import random
import time
from dataclasses import dataclass
from statistics import median

from benchmarks.load import WITH_USAGE, Client, Target, all_answered, burst, run
from benchmarks.patterns import PATTERNS, TURN_TOKENS, Pattern, Prime
from benchmarks.processes import PeakMemory, Place
from benchmarks.workload import StreamTimes, median_known, ratio, text_of

OUTPUT_TOKENS = 4
AT_ONCE = 8
SIMULTANEOUS = "eight at once, cold"


@dataclass(frozen=True, slots=True)
class PrefixRow:
    """Medians of all measured prompts. `ratio` is of TTFT: to the raw engine's, or to that of one request alone.

    `ready_tokens` were in the raw engine's KV cache; the server reports `prompt_tokens` and `cached_tokens`.
    """

    model: str
    pattern: str
    prompt_tokens: float | None
    ready_tokens: float
    cached_tokens: float | None
    ttft_ms: float
    compared_ms: float | None
    ratio: float | None
    memory: PeakMemory | None


@dataclass(frozen=True, slots=True)
class _Answer:
    times: StreamTimes
    ready_tokens: int
    raw_ttft: float | None


def measure(place: Place, runs: int, prefix_tokens: int) -> list[PrefixRow]:
    seed = time.time_ns()  # new prompts for every run, because a running server may have the old ones cached
    answers: dict[str, list[_Answer]] = {name: [] for name in PATTERNS}
    at_once: list[float] = []
    with Client(place.server.target) as client:
        client.ask(text_of(random.Random(seed), prefix_tokens), OUTPUT_TOKENS, **WITH_USAGE)
        for attempt in range(runs):
            for name, pattern in PATTERNS.items():
                rng = random.Random(f"{seed} {attempt} {name}")
                answers[name] += _ask_all(client, place, pattern, rng, prefix_tokens)
            at_once.append(_last_of_many(place.server.target, random.Random(f"{seed} {attempt}"), prefix_tokens))
    memory = place.server.peak_memory()
    rows = [_row(place.model, name, of_pattern, memory) for name, of_pattern in answers.items()]
    return [*rows, _at_once_row(place.model, at_once, rows[0])]


def _ask_all(client: Client, place: Place, pattern: Pattern, rng: random.Random, prefix_tokens: int) -> list[_Answer]:
    answers = []
    for prompt in pattern(rng, prefix_tokens):
        times = client.ask(prompt.prompt, OUTPUT_TOKENS, **WITH_USAGE)
        if not isinstance(prompt, Prime):
            raw_ttft = place.raw.ttft(prompt) if place.raw is not None else None
            answers.append(_Answer(times, prompt.ready_tokens, raw_ttft))
    return answers


def _last_of_many(target: Target, rng: random.Random, prefix_tokens: int) -> float:
    """Seconds to the last first token of concurrent requests that share a new prefix."""
    prefix = text_of(rng, prefix_tokens)
    prompts = [prefix + text_of(rng, TURN_TOKENS) for _ in range(AT_ONCE)]
    return max(times.ttft for times in all_answered(run(burst(target, prompts, OUTPUT_TOKENS))))


def _row(model: str, name: str, answers: list[_Answer], memory: PeakMemory | None) -> PrefixRow:
    return PrefixRow(
        model=model,
        pattern=name,
        prompt_tokens=median_known(answer.times.prompt_tokens for answer in answers),
        ready_tokens=median(answer.ready_tokens for answer in answers),
        cached_tokens=median_known(answer.times.cached_tokens for answer in answers),
        ttft_ms=1000 * median(answer.times.ttft for answer in answers),
        compared_ms=_milliseconds(median_known(answer.raw_ttft for answer in answers)),
        ratio=median_known(ratio(answer.times.ttft, answer.raw_ttft) for answer in answers),
        memory=memory,
    )


def _at_once_row(model: str, last_ttfts: list[float], alone: PrefixRow) -> PrefixRow:
    last_ms = 1000 * median(last_ttfts)
    return PrefixRow(
        model=model,
        pattern=SIMULTANEOUS,
        prompt_tokens=alone.prompt_tokens,
        ready_tokens=0,
        cached_tokens=None,
        ttft_ms=last_ms,
        compared_ms=alone.ttft_ms,
        ratio=last_ms / alone.ttft_ms,
        memory=alone.memory,
    )


def _milliseconds(seconds: float | None) -> float | None:
    return 1000 * seconds if seconds is not None else None
