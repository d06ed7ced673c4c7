"""Draws the results: efficiency over streams, and waiting times as ratios."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.prefix import SIMULTANEOUS
from benchmarks.report import Results

INK, MUTED, TARGET = "#333333", "#999999", "#d62728"
COLOURS = {"a": "#1f6fb2", "b": "#e08e2b", "c": "#3a923a", "d": "#8c4fb0"}


@dataclass(frozen=True, slots=True)
class Bar:
    """The ratio of a time to first token to its reference."""

    label: str
    model: str
    ratio: float
    target: float | None


def draw(results: Results, file: Path) -> bool:
    """Whether it drew a chart: only if the results have comparisons, and if matplotlib is installed."""
    compared = any(row.efficiency is not None for row in results.throughput)
    bars = waiting_times(results)
    panels = [panel for panel, there in ((_efficiency, compared), (_waiting, bool(bars))) if there]
    if not panels or importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 9, "axes.edgecolor": MUTED, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context({**style, "text.color": INK, "axes.labelcolor": INK, "svg.hashsalt": "benchmark"}):
        height = max(3.4, 1.2 + 0.27 * len(bars))
        figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), height), squeeze=False)
        for panel, place in zip(panels, axes[0], strict=True):
            panel(place, results)
        figure.tight_layout(w_pad=2)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
        pyplot.close(figure)
    return True


def waiting_times(results: Results) -> list[Bar]:
    """Every time to first token that has a reference."""
    bars = []
    for row in results.prefix:
        if row.ratio is not None:
            against = "one" if row.pattern == SIMULTANEOUS else "raw"
            target = {"cold": None, SIMULTANEOUS: 1.5}.get(row.pattern, 1.3)
            bars.append(Bar(f"{row.pattern} / {against}", row.model, row.ratio, target))
    for stall in results.stall:
        bars.append(Bar("long prompt beside streams / alone", stall.model, stall.ttft_ratio, 1.6))
    for cancel in results.cancel:
        bars.append(Bar("after eight clients left / alone", cancel.model, cancel.ttft_ratio, None))
    for burst in results.overload:
        if burst.ratio is not None:
            bars.append(Bar(f"last of {burst.requests} at once / raw", burst.model, burst.ratio, 1.2))
    return sorted(bars, key=lambda bar: bar.model)


def _efficiency(axes: Any, results: Results) -> None:
    """Draws a line for each model."""
    rows = [row for row in results.throughput if row.efficiency is not None]
    streams = sorted({row.concurrency for row in rows})
    best = {number: max(row.efficiency or 0.0 for row in rows if row.concurrency == number) for number in streams}
    axes.axhline(1, color=MUTED, linewidth=0.9)
    for model in sorted({row.model for row in rows}):
        points = [(row.concurrency, row.efficiency) for row in rows if row.model == model]
        axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS.get(model), label=f"model ({model})")
        for number, efficiency in points:
            offset = 7 if efficiency == best[number] else -14
            place = (number, efficiency)
            axes.annotate(f"{efficiency:.2f}", place, (0, offset), textcoords="offset points", ha="center")
    axes.set_xscale("log", base=2)
    axes.set_xticks(streams, [str(number) for number in streams])
    axes.minorticks_off()
    axes.set_ylim(0, 1.15 * max(1.0, *(row.efficiency or 0.0 for row in rows)))
    axes.set_title("Output tokens per second, server / raw engine\nmore is better", loc="left", fontsize=9)
    axes.set_xlabel("streams at once")
    axes.legend(frameon=False, loc="lower right")


def _waiting(axes: Any, results: Results) -> None:
    bars = waiting_times(results)
    places = range(len(bars))
    several = len({bar.model for bar in bars}) > 1
    axes.barh(places, [bar.ratio for bar in bars], height=0.66, color=[COLOURS.get(bar.model, INK) for bar in bars])
    for place, bar in zip(places, bars, strict=True):
        axes.annotate(f"{bar.ratio:.2f}", (0, place), (4, -0.5), textcoords="offset points", va="center", color="white")
        if bar.target is not None:
            axes.plot([bar.target] * 2, [place - 0.4, place + 0.4], color=TARGET, linewidth=2)
    axes.axvline(1, color=MUTED, linewidth=0.9)
    axes.set_yticks(places, [f"({bar.model}) {bar.label}" if several else bar.label for bar in bars])
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Time to first token, as a ratio\nless is better; red: the target", loc="left", fontsize=9)
