"""Writes the report of a soak, by the minute, as tables in Markdown."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.soak.client import Outcome
from benchmarks.soak.faults import Window
from benchmarks.soak.samples import Sample
from benchmarks.soak.verdict import Verdict, is_as_wanted

_ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Soak:
    """All observations."""

    seconds: float
    seed: int
    outcomes: list[Outcome]
    windows: list[Window]
    samples: list[Sample]


def percentile(values: Iterable[float], share: float) -> float | None:
    """The quantile `share` of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def markdown(soak: Soak, verdict: Verdict, chart: str) -> str:
    return (
        "\n\n".join(
            (
                "# Soak",
                f"{soak.seconds / 60:.1f} minutes, seed {soak.seed}, {len(soak.outcomes)} requests, "
                f"{len(soak.windows)} faults, {verdict.excused} excused errors.",
                verdict_text(verdict),
                f"![Memory, requests, latency and errors over time]({chart})",
                minutes_table(soak),
                kinds_table(soak.outcomes),
                _faults_table(soak),
                "",
            )
        ).rstrip("\n")
        + "\n"
    )


def verdict_text(verdict: Verdict) -> str:
    lines = [f"**{'Passed' if verdict.good else 'FAILED'}.**"]
    for growth in verdict.growths:
        gained = "not judged, too short" if growth.gained_mb is None else f"{growth.gained_mb:+.1f} MB"
        lines.append(f"- memory of {growth.name}, after warm-up: {gained} (allowed {growth.allowed_mb:g} MB)")
    return "\n".join([*lines, *(f"- {failure}" for failure in verdict.failures)])


def minutes_table(soak: Soak) -> str:
    memory = "API MB|workers MB|prefixes MB|buffers MB"
    header = f"minute|requests/s|errors|{memory}|descriptors|threads|ttft p50|ttft p95|total p95|/health max"
    rows = []
    for minute in range(int(soak.seconds // 60) + 1):
        asked = [one for one in soak.outcomes if int(one.at_seconds // 60) == minute]
        samples = [one for one in soak.samples if int(one.at_seconds // 60) == minute]
        if asked and samples:
            rows.append(_minute(minute, min(60.0, soak.seconds - 60 * minute), asked, samples))
    return _table(header.split("|"), rows)


def kinds_table(outcomes: Sequence[Outcome]) -> str:
    """Outcomes by kind of request."""
    rows = []
    for kind in sorted({outcome.kind for outcome in outcomes}):
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        ends = Counter(outcome.end if outcome.code is None else outcome.code for outcome in of_kind)
        rows.append([kind, str(len(of_kind)), ", ".join(f"{end} {count}" for end, count in ends.most_common())])
    return _table(["request", "sent", "results"], rows)


def _faults_table(soak: Soak) -> str:
    rows = []
    for window in soak.windows:
        cost = Counter(str(one.code) for one in soak.outcomes if not is_as_wanted(one) and window.excuses(one))
        took = window.until_seconds - window.from_seconds
        costs = ", ".join(f"{code} {count}" for code, count in cost.most_common())
        rows.append([f"{window.from_seconds:.0f} s", window.name, f"{took:.1f} s", costs or "nothing"])
    return _table(["at", "fault", "until recovery", "errors caused"], rows)


def _minute(minute: int, seconds: float, asked: Sequence[Outcome], samples: Sequence[Sample]) -> list[str]:
    ttfts = [one.ttft_seconds for one in asked if one.ttft_seconds is not None]
    totals = [one.seconds for one in asked if one.end == "answered"]
    last = samples[-1]
    return [
        str(minute),
        f"{len(asked) / max(seconds, 1.0):.1f}",
        str(sum(not is_as_wanted(one) for one in asked)),
        f"{last.api_mb:.0f}",
        f"{last.all_mb - last.api_mb:.0f}",
        f"{sum(last.prefixes_mb.values()):.0f}",
        f"{sum(last.buffers_mb.values()):.0f}",
        str(last.descriptors),
        str(last.threads),
        _seconds(percentile(ttfts, 0.5)),
        _seconds(percentile(ttfts, 0.95)),
        _seconds(percentile(totals, 0.95)),
        _seconds(max((one.probe_seconds for one in samples if one.probe_seconds is not None), default=None)),
    ]


def _seconds(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.2f} s"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
