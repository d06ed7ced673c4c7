"""Measures many more concurrent requests than batch rows: how many succeed, order, latency and memory."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.load import Refused, burst, run
from benchmarks.processes import PeakMemory, Place
from benchmarks.workload import StreamTimes, Workload, median_known, ratio

PROMPT_WORDS = 8
OUTPUT_TOKENS = 64
BATCH_ROWS = 64
STATUS_TOO_MANY_REQUESTS = 429


@dataclass(frozen=True, slots=True)
class OverloadRow:
    """Medians of the runs, and the worst displacement of all runs. Compared with the raw engine, which answers all
    requests, only if the server did too."""

    model: str
    requests: int
    answered: float
    refused: float
    failed: float
    displacement: int
    last_ttft_ms: float
    raw_last_ttft_ms: float | None
    ratio: float | None
    memory: PeakMemory | None


@dataclass(frozen=True, slots=True)
class Burst:
    """`answered` in the order of sending; `failed` requests were neither answered nor rejected with 429."""

    answered: list[StreamTimes]
    refused: int
    failed: int

    @classmethod
    def of(cls, outcomes: Sequence[StreamTimes | BaseException]) -> "Burst":
        answered = [outcome for outcome in outcomes if isinstance(outcome, StreamTimes)]
        refused = sum(
            isinstance(outcome, Refused) and outcome.status == STATUS_TOO_MANY_REQUESTS for outcome in outcomes
        )
        return cls(answered, refused, len(outcomes) - len(answered) - refused)

    @property
    def last_ttft(self) -> float:
        return max((times.ttft for times in self.answered), default=0.0)

    @property
    def displacement(self) -> int:
        """The largest difference between a request's positions in the orders of first tokens and of arrival."""
        order = sorted(range(len(self.answered)), key=lambda turn: self.answered[turn].ttft)
        return max((abs(turn - place) for place, turn in enumerate(order)), default=0)


def measure(place: Place, requests: int, runs: int) -> OverloadRow:
    bursts: list[Burst] = []
    raw_ttfts: list[float | None] = []
    for attempt in range(runs + 1):
        workload = Workload(requests, 1, PROMPT_WORDS, OUTPUT_TOKENS, seed=time.time_ns(), batch_rows=BATCH_ROWS)
        answers = Burst.of(run(burst(place.server.target, workload.prompts()[0], OUTPUT_TOKENS)))
        compared = place.raw is not None and len(answers.answered) == requests
        raw_ttft = place.raw.run(workload).ttft_max / 1000 if place.raw is not None and compared else None
        if attempt > 0:  # the first run warms both up
            bursts.append(answers)
            raw_ttfts.append(raw_ttft)
    raw_last_ttft = median_known(raw_ttfts)
    return OverloadRow(
        model=place.model,
        requests=requests,
        answered=median(len(answers.answered) for answers in bursts),
        refused=median(answers.refused for answers in bursts),
        failed=median(answers.failed for answers in bursts),
        displacement=max(answers.displacement for answers in bursts),
        last_ttft_ms=1000 * median(answers.last_ttft for answers in bursts),
        raw_last_ttft_ms=1000 * raw_last_ttft if raw_last_ttft is not None else None,
        ratio=median_known(ratio(answers.last_ttft, raw) for answers, raw in zip(bursts, raw_ttfts, strict=True)),
        memory=place.server.peak_memory(),
    )
