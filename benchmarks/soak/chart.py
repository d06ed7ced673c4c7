"""Draws a soak: memory, requests, latency and errors over time, with a line at every fault."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.soak.report import Soak, percentile
from benchmarks.soak.verdict import is_as_wanted

INK, MUTED, BLUE, ORANGE, RED = "#333333", "#bbbbbb", "#1f6fb2", "#e08e2b", "#d62728"
BINS = 60


def draw(soak: Soak, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 8, "axes.edgecolor": MUTED, "axes.spines.top": False, "axes.spines.right": False}
    style |= {"text.color": INK, "axes.labelcolor": INK, "svg.hashsalt": "soak", "svg.fonttype": "none"}
    panels: tuple[Callable[[Any, Soak], None], ...] = (_memory, _requests, _latency)
    with pyplot.rc_context(style):
        figure, places = pyplot.subplots(len(panels), 1, figsize=(8, 6.4), sharex=True)
        for panel, axes in zip(panels, places, strict=True):
            for window in soak.windows:
                axes.axvline(window.from_seconds, color=MUTED, linewidth=0.5)
            panel(axes, soak)
            axes.set_ylim(0, 1.2 * axes.get_ylim()[1])  # leaves space for the legend
            axes.legend(frameon=False, loc="upper right", ncols=4)
        places[-1].set_xlabel("seconds; a grey line is a fault")
        figure.tight_layout()
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
        pyplot.close(figure)


def _memory(axes: Any, soak: Soak) -> None:
    times = [sample.at_seconds for sample in soak.samples]
    axes.plot(times, [sample.api_mb for sample in soak.samples], color=BLUE, label="API")
    rests = [sum(sample.rest_mb.values()) for sample in soak.samples]
    axes.plot(times, rests, color=INK, label="workers, the rest")
    prefixes = [sum(sample.prefixes_mb.values()) for sample in soak.samples]
    axes.plot(times, prefixes, color=ORANGE, label="workers' prefixes")
    buffers = [sum(sample.buffers_mb.values()) for sample in soak.samples]
    axes.plot(times, buffers, color=RED, label="workers' freed buffers")
    axes.set_title("Resident memory, MB", loc="left", fontsize=8)


def _requests(axes: Any, soak: Soak) -> None:
    """Counts excused errors too; the table lists each."""
    step = soak.seconds / BINS
    sent, errors = [0.0] * BINS, [0.0] * BINS
    for outcome in soak.outcomes:
        place = min(BINS - 1, int(outcome.at_seconds / step))
        sent[place] += 1 / step
        errors[place] += not is_as_wanted(outcome)
    times = [(place + 0.5) * step for place in range(BINS)]
    axes.plot(times, sent, color=BLUE, label="requests per second")
    axes.bar(times, errors, width=step, color=RED, label=f"errors in {step:.1f} s")
    axes.set_title("Requests and errors", loc="left", fontsize=8)


def _latency(axes: Any, soak: Soak) -> None:
    step = soak.seconds / BINS
    bins: list[list[float]] = [[] for _ in range(BINS)]
    for outcome in soak.outcomes:
        if outcome.ttft_seconds is not None:
            bins[min(BINS - 1, int(outcome.at_seconds / step))].append(outcome.ttft_seconds)
    for share, colour in ((0.5, BLUE), (0.95, ORANGE)):
        points = [((place + 0.5) * step, percentile(values, share)) for place, values in enumerate(bins) if values]
        axes.plot(*zip(*points, strict=True), color=colour, label=f"p{share * 100:.0f}") if points else None
    axes.set_title("Time to first token, s", loc="left", fontsize=8)
