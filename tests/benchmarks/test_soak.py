"""The soak: that it knows good from bad, and a short one of the real server."""

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak.client import Outcome, SoakClient
from benchmarks.soak.faults import Window
from benchmarks.soak.report import Soak, markdown
from benchmarks.soak.samples import Sample, slope
from benchmarks.soak.traffic import Planned, planned_traffic
from benchmarks.soak.verdict import Verdict, growths, judge
from tests.faulty_upstream import DONE, Answer, error, faulty_upstream, piece, sse
from tests.running_server import HANG_SECONDS

ROOT = Path(__file__).parents[2]
GOOD = Outcome("short chat", "demo", 200, at_seconds=10, seconds=1, end="answered", status=200, ttft_seconds=0.1)
FAILED = replace(GOOD, end="refused", status=500, code="engine_failed")
KILL = Window("kill -9 demo", frozenset({"demo"}), frozenset({"engine_failed"}), from_seconds=10.5, until_seconds=12)


def samples(seconds: int = 120, leak_mb: float = 0.0, spikes: int = 0, worker_leak_mb: float = 0.0) -> list[Sample]:
    """One a second, of an API process that gains `leak_mb` in each, a worker, and others that come and go."""
    return [
        Sample(
            at,
            100 + at * leak_mb + (500 if at % 7 < spikes else 0),
            {1: 200 + at * worker_leak_mb, 2 + at // 20: 300 + at % 20 * 9},
            *(20, 5, 0.01),
        )
        for at in range(seconds)
    ]


def test_prefixes_and_buffers_that_fill_up_are_no_leak_and_the_rest_is_judged() -> None:
    keeping = [
        replace(sample, workers_mb={1: 200.0 + at}, prefixes_mb={1: at / 2}, buffers_mb={1: at / 2})
        for at, sample in enumerate(samples())
    ]
    assert verdict(taken=keeping).good
    leaking = [replace(sample, workers_mb={1: 200.0 + 2 * at}) for at, sample in enumerate(keeping)]
    assert not verdict(taken=leaking).good


def verdict(*outcomes: Outcome, windows: Sequence[Window] = (), taken: Sequence[Sample] = ()) -> Verdict:
    return judge([GOOD, *outcomes], windows, taken or samples(), [])


def test_what_is_wanted_or_excused_passes() -> None:
    refused = replace(GOOD, wanted_status=422, end="refused", status=422, code="validation_error")
    busy = replace(GOOD, end="refused", status=429, code="server_busy")
    left = replace(GOOD, end="left", status=None)
    broken_off = replace(FAILED, end="error event", status=200, at_seconds=8, seconds=3)
    found = verdict(refused, busy, left, FAILED, broken_off, windows=[KILL])
    assert (found.failures, found.good, found.excused) == ([], True, 2)


@pytest.mark.parametrize(
    "outcome",
    [
        FAILED,
        replace(FAILED, at_seconds=12.5),
        replace(FAILED, at_seconds=5, seconds=5),
        replace(FAILED, model="second", at_seconds=11),
        replace(FAILED, code="internal_error", at_seconds=11),
        replace(GOOD, end="hung", at_seconds=11),
        replace(GOOD, end="cut", at_seconds=11),
        replace(GOOD, end="wrong", at_seconds=11),
        replace(GOOD, wanted_status=422),
        replace(GOOD, wanted_status=422, end="refused", status=400, code="invalid_request"),
        replace(GOOD, end="refused", status=200, code=None),
        replace(GOOD, end="left", status=500),
    ],
)
def test_what_no_fault_excuses_fails_and_is_told_with_its_request(outcome: Outcome) -> None:
    windows = [KILL] if outcome is not FAILED else []
    found = verdict(replace(outcome, request='{"model": "of the request"}'), windows=windows)
    assert not found.good
    (failure,) = found.failures
    assert "of the request" in failure


def test_server_that_stood_still_or_complaints_or_no_answers_fail() -> None:
    silent = [*samples(), replace(samples()[0], probe_seconds=None), replace(samples()[0], probe_seconds=11.0)]
    assert len(verdict(taken=silent).failures) == 2
    assert judge([GOOD], [], samples(), ["second did not come back"]).failures == ["second did not come back"]
    assert judge([], [], samples(), []).failures == ["no request was answered"]


def test_memory_that_grows_fails_and_spikes_do_not() -> None:
    assert not verdict(taken=samples(leak_mb=0.5)).good
    assert not verdict(taken=samples(worker_leak_mb=1)).good
    assert verdict(taken=samples(leak_mb=0.1, worker_leak_mb=0.1)).good
    assert verdict(taken=samples(spikes=3)).good
    assert [growth.gained_mb for growth in growths(samples(seconds=60, leak_mb=9))] == [None, None]
    assert slope([(at, 3 * at if at % 5 else 1e6) for at in range(100)]) == pytest.approx(3)


def test_traffic_is_the_same_for_a_seed_and_has_every_kind() -> None:
    def planned(seed: int) -> list[Planned]:
        dice = random.Random(seed)
        return [planned_traffic(dice, "second") for _ in range(400)]

    assert planned(1) == planned(1) != planned(2)
    assert len({one.kind for one in planned(1)}) == 10
    assert {one.model for one in planned(1)} == {"demo", "second", "nobody"}
    assert {one.status for one in planned(1)} == {200, 400, 404, 422}


ANSWERS = {
    "well": (Answer((piece("Hello"), piece("", finish_reason="stop"), DONE)), "answered", None),
    "no-end": (Answer((piece("Hello"),)), "wrong", None),
    "breaks-off": (Answer((piece("Hello"),), missing_bytes=9), "cut", None),
    "error-event": (
        Answer((piece("Hello"), sse({"error": {"code": "engine_failed"}}))),
        "error event",
        "engine_failed",
    ),
    "refused": (error(503, code="not_ready", message="later"), "refused", "not_ready"),
    "no-json": (Answer((b"<html>",), 502, {}), "cut", None),
    "silent": (Answer(hangs=True), "hung", None),
    "silent-in-text": (Answer((piece("Hello"),), hangs=True), "hung", None),
}


@pytest.mark.anyio
async def test_client_tells_how_each_answer_ended() -> None:
    with faulty_upstream({name: answer for name, (answer, _, _) in ANSWERS.items()}) as upstream:
        client = SoakClient(upstream.url, time.monotonic(), hung_seconds=1)
        for name, (_, end, code) in ANSWERS.items():
            content = b'{"model": "%s"}' % name.encode()
            outcome = await client.send(Planned("x", "/v1/completions", content, stream=True))
            assert (outcome.end, outcome.code, outcome.request) == (end, code, content.decode()), name
        left = await client.send(
            Planned("x", "/v1/completions", b'{"model": "silent-in-text"}', stream=True, leaves_after_seconds=0.3)
        )
        assert left.end == "left"
        await client.aclose()


def test_report_has_a_row_for_each_minute_kind_and_fault() -> None:
    outcomes = [replace(GOOD, at_seconds=at) for at in range(0, 120, 10)] + [replace(FAILED, at_seconds=11)]
    soak = Soak(120.0, 0, outcomes, [KILL], samples())
    text = markdown(soak, judge(outcomes, [KILL], soak.samples, []), "soak.svg")
    rows = [line for line in itertools.chain(text.splitlines()) if line.startswith("| ")]
    assert [row for row in rows if row.startswith("| 1  ")]
    assert [row for row in rows if "kill -9 demo" in row and "engine_failed 1" in row]
    assert [row for row in rows if "short chat" in row and "answered 12, engine_failed 1" in row]
    assert "**Passed.**" in text


@pytest.mark.slow
def test_short_soak_of_the_real_server_passes_and_is_drawn(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.1", "--output", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "**Passed.**" in ran.stdout
    assert (tmp_path / "soak.md").read_text().startswith("# Soak")
    chart = (tmp_path / "soak.svg").read_text()
    assert "requests per second" in chart
    for line in ("workers, the rest", "workers' prefixes", "workers' freed buffers"):
        assert line in chart
    assert len(chart) < 200_000
