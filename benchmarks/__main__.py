"""`make bench`: measures the server, or any other OpenAI-compatible one, and writes tables, JSON and a chart."""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import (
    cancel,
    ceiling,
    disk,
    embeddings,
    features,
    first,
    lengths,
    overload,
    prefix,
    rows,
    side,
    stall,
    throughput,
)
from benchmarks.chart import draw
from benchmarks.load import Target
from benchmarks.models import GPU_LARGE, GPU_SMALL, LARGE, SMALL, computes_on_gpu, make_model
from benchmarks.processes import Place, RawEngine, Server, our_server
from benchmarks.report import Circumstances, Results, markdown

CACHE = Path(".cache/benchmarks")
SIZES = {size.name: size for size in (SMALL, LARGE, GPU_SMALL, GPU_LARGE)}
DEFAULT_SIZES = [size.name for size in ((GPU_SMALL, GPU_LARGE) if computes_on_gpu() else (SMALL, LARGE))]
SECTIONS = ("first", "lengths", "throughput", "features", "prefix", "stall", "side", "cancel", "overload")
CEILING = "ceiling"
EMBEDDINGS = "embeddings"
ROWS = "rows"
DISK = "disk"
CHART = "results.svg"


def main() -> None:
    options = _options()
    results = Results(Circumstances.now(options.runs, shlex.join(sys.argv[1:])))
    if CEILING in options.sections:
        results.ceiling.extend(ceiling.measure(streams, options.runs) for streams in options.concurrency)
    if options.base_url is not None:
        server = Server(Target(options.base_url, options.model))
        for section in _sections_of(options):
            _measure(section, Place(server, None, options.model), options, results)
    else:
        for size in sorted({*options.sizes, *options.scenario_sizes}):
            _measure_ours(size, options, results)
        if DISK in options.sections:
            results.disk.append(_measure_disk(options))
        if EMBEDDINGS in options.sections:
            _measure_embeddings(options, results)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    drawn = draw(results, options.out / CHART)
    tables = markdown(results, CHART if drawn else None)
    (options.out / "results.md").write_text(tables)
    print(tables)


def _measure_ours(size: str, options: argparse.Namespace, results: Results) -> None:
    """Every section starts its own server, to measure its own peak memory."""
    folder = make_model(CACHE / f"model-{size}", SIZES[size])
    raw = RawEngine(folder)
    try:
        for section in _sections_of(options):
            if size in (options.sizes if section == "throughput" else options.scenario_sizes):
                with our_server(folder.resolve(), CACHE / "server.log") as server:
                    _measure(section, Place(server, raw, size), options, results)
        if ROWS in options.sections and size in options.scenario_sizes:
            print(f"model {size}: rows", file=sys.stderr, flush=True)
            results.rows.append(rows.measure(folder, size, options.runs))
    finally:
        raw.close()


def _measure_embeddings(options: argparse.Namespace, results: Results) -> None:
    print("embeddings", file=sys.stderr, flush=True)
    streaming = make_model(CACHE / f"model-{SMALL.name}", SMALL).resolve()
    encoder = embeddings.make_encoder(CACHE / "encoder").resolve()
    with our_server(streaming, CACHE / "server.log", encoder) as server:
        results.embeddings.append(embeddings.measure(server, encoder, options.runs))


def _measure_disk(options: argparse.Namespace) -> disk.DiskRow:
    """On the larger model: the KV cache of the smaller one is computed about as fast as it is read."""
    print("disk", file=sys.stderr, flush=True)
    folder = make_model(CACHE / f"model-{LARGE.name}", LARGE).resolve()
    return disk.measure(folder, LARGE.name, CACHE, options.runs, options.conversation_tokens)


def _sections_of(options: argparse.Namespace) -> list[str]:
    return [section for section in SECTIONS if section in options.sections]


def _measure(section: str, place: Place, options: argparse.Namespace, results: Results) -> None:
    runs: int = options.runs
    print(f"model {place.model}: {section}", file=sys.stderr, flush=True)
    match section:
        case "first":
            results.first.extend(first.measure(place))
        case "lengths":
            results.lengths.append(lengths.measure(place, options.lengths, options.longest_length_tokens))
        case "throughput":
            results.throughput.extend(
                throughput.measure(place, streams, runs, options.tokens) for streams in options.concurrency
            )
        case "features":
            results.features.extend(features.measure(place, runs, options.tokens))
        case "prefix":
            results.prefix.extend(prefix.measure(place, runs, options.prefix_tokens))
        case "stall":
            results.stall.append(stall.measure(place, runs, options.long_prompt_tokens))
        case "side":
            results.side.append(side.measure(place, runs, options.side_prompt_tokens))
        case "cancel":
            results.cancel.append(cancel.measure(place, runs))
        case "overload":
            results.overload.extend(overload.measure(place, requests, runs) for requests in options.bursts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure an OpenAI-compatible server against mlx-lm's raw engine.")
    parser.add_argument(
        "--base-url",
        help="base URL of another server, such as http://127.0.0.1:8080 (default: start this project's server)",
    )
    parser.add_argument("--model", default="default", help="model id to request from the other server")
    every = [*SECTIONS, ROWS, DISK, EMBEDDINGS, CEILING]
    parser.add_argument("--sections", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--sizes", nargs="+", choices=sorted(SIZES), default=DEFAULT_SIZES, help="models for throughput"
    )
    parser.add_argument(
        "--scenario-sizes",
        nargs="+",
        choices=sorted(SIZES),
        default=DEFAULT_SIZES[:1],
        help="for the others",
    )
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--runs", type=int, default=3, help="number of alternated runs; the report has medians")
    parser.add_argument(
        "--tokens", type=int, default=128, help="output tokens of every request in the throughput section"
    )
    parser.add_argument(
        "--prefix-tokens", type=_even, default=1_800, help="tokens of the shared prefix in the prefix section"
    )
    parser.add_argument(
        "--long-prompt-tokens", type=_even, default=4_000, help="tokens of the prompt in the stall section"
    )
    parser.add_argument(
        "--side-prompt-tokens", type=_even, default=24_000, help="tokens of the long prompt in the side section"
    )
    parser.add_argument("--lengths", type=int, default=12, help="prompts of different lengths in the lengths section")
    parser.add_argument("--longest-length-tokens", type=int, default=2_000, help="limit of these lengths")
    parser.add_argument(
        "--conversation-tokens", type=_even, default=20_000, help="tokens of the conversation in the disk section"
    )
    parser.add_argument(
        "--bursts", nargs="+", type=int, default=[200, 600], help="concurrent requests in the overload section"
    )
    parser.add_argument("--out", type=Path, default=CACHE / "latest", help="folder for results.{json,md,svg}")
    return parser.parse_args()


def _even(text: str) -> int:
    number = int(text)
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(
            f"{number} is not a positive even number. Choose an even one: a word is two tokens."
        )
    return number


if __name__ == "__main__":
    main()
