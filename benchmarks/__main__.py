"""`make bench`: measures the server, or any other OpenAI-compatible one, and writes a table, JSON and a chart."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.load import Target
from benchmarks.models import LARGE, SMALL, make_model
from benchmarks.processes import RawEngine, Server, our_server
from benchmarks.report import chart, table
from benchmarks.throughput import Row, measure

CACHE = Path(".cache/benchmarks")
SIZES = {size.name: size for size in (SMALL, LARGE)}


def main() -> None:
    options = _options()
    rows: list[Row] = []
    if options.base_url is not None:
        server = Server(Target(options.base_url, options.model))
        rows += [measure(server, None, options.model, c, options.runs, options.tokens) for c in options.concurrency]
    else:
        for name in options.sizes:
            rows += _ours(name, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    (options.out / "results.md").write_text(table(rows))
    chart(rows, options.out / "results.svg")
    print(table(rows))


def _ours(name: str, options: argparse.Namespace) -> list[Row]:
    folder = make_model(CACHE / f"model-{name}", SIZES[name])
    raw = RawEngine(folder)
    try:
        with our_server(folder.resolve(), CACHE / "server.log") as server:
            return [measure(server, raw, name, c, options.runs, options.tokens) for c in options.concurrency]
    finally:
        raw.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure an OpenAI-compatible server against mlx-lm's raw engine.")
    parser.add_argument("--base-url", help="another server (http://127.0.0.1:8080); without it, ours is started")
    parser.add_argument("--model", default="default", help="the model to ask the other server for")
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=sorted(SIZES), help="models to measure")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--runs", type=int, default=3, help="alternated runs; medians are reported")
    parser.add_argument("--tokens", type=int, default=128, help="output tokens of every request")
    parser.add_argument("--out", type=Path, default=CACHE / "latest", help="folder for results.{json,md,svg}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
