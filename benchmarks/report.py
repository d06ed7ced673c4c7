"""The table and the chart of measured rows."""

from pathlib import Path

from benchmarks.throughput import Row

_HEAD = (
    "model | streams | tok/s | raw tok/s | efficiency | API us/tok | engine us/tok | raw us/tok | tok/chunk "
    "| TTFT p50 / p95 ms | raw TTFT p95 | ITL p50 / p95 / max ms | raw ITL p95 | API / engine peak MB"
)


def table(rows: list[Row]) -> str:
    """Markdown."""
    rule = " | ".join("---" for _ in _HEAD.split(" | "))
    return "\n".join([f"| {_HEAD} |", f"| {rule} |", *(f"| {_cells(row)} |" for row in rows)]) + "\n"


def _cells(row: Row) -> str:
    ours, raw = row.server, row.raw
    return " | ".join(
        [
            row.model,
            str(row.concurrency),
            f"{ours.tokens_per_second:.0f}",
            f"{raw.tokens_per_second:.0f}" if raw else "",
            f"{row.efficiency:.2f}" if row.efficiency else "",
            f"{ours.api_cpu_us:.0f}",
            f"{ours.engine_cpu_us:.0f}",
            f"{raw.engine_cpu_us:.0f}" if raw else "",
            f"{ours.tokens_per_chunk:.2f}",
            f"{ours.ttft_p50:.0f} / {ours.ttft_p95:.0f}",
            f"{raw.ttft_p95:.0f}" if raw else "",
            f"{ours.itl_p50:.1f} / {ours.itl_p95:.1f} / {ours.itl_max:.0f}",
            f"{raw.itl_p95:.1f}" if raw else "",
            f"{ours.api_peak_mb:.0f} / {ours.engine_peak_mb:.0f}",
        ]
    )


def chart(rows: list[Row], file: Path) -> None:
    """Efficiency over concurrency, a line for each model; the raw engine is the line at 1."""
    compared = [row for row in rows if row.efficiency is not None]
    if not compared:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for model in sorted({row.model for row in compared}):
        points = [(row.concurrency, row.efficiency) for row in compared if row.model == model]
        axes.plot(*zip(*points, strict=True), marker="o", label=f"model ({model})")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xlabel="streams at once", ylabel="output tok/s, server / raw engine", xscale="log")
    axes.set_xticks([row.concurrency for row in compared], [str(row.concurrency) for row in compared])
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)
