"""Writes the results as Markdown tables and as JSON."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from benchmarks.cancel import CancelRow
from benchmarks.ceiling import CeilingRow
from benchmarks.disk import DiskRow
from benchmarks.embeddings import EmbeddingRow
from benchmarks.features import FeatureRow
from benchmarks.first import FirstRow
from benchmarks.lengths import LengthsRow
from benchmarks.models import computes_on_gpu
from benchmarks.overload import OverloadRow
from benchmarks.prefix import PrefixRow
from benchmarks.processes import PeakMemory
from benchmarks.rows import RowsRow
from benchmarks.side import SideRow
from benchmarks.stall import StallRow
from benchmarks.throughput import Row
from mlx_manager.mlx_server import __version__


@dataclass(frozen=True, slots=True)
class Circumstances:
    """The environment of a measurement."""

    date: str
    versions: dict[str, str]
    machine: str
    cores: int
    runs: int
    arguments: str

    @classmethod
    def now(cls, runs: int, arguments: str) -> "Circumstances":
        versions = {"mlx-manager": __version__} | {name: version(name) for name in ("mlx", "mlx-lm")}
        machine = f"{platform.system()} {platform.machine()}, {_processor()}{_card()}"
        date = datetime.now(UTC).date().isoformat()
        cores = os.cpu_count() or 0
        return cls(date, versions | {"Python": platform.python_version()}, machine, cores, runs, arguments)

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        command = f"make bench BENCH='{self.arguments}'" if self.arguments else "make bench"
        return (
            f"## Measured on {self.date}\n\n`{command}`: {versions}, {self.machine}, {self.cores} cores. "
            f"Medians of {self.runs} alternated runs.\n"
        )


@dataclass(frozen=True, slots=True)
class Results:
    circumstances: Circumstances
    ceiling: list[CeilingRow] = field(default_factory=list)
    throughput: list[Row] = field(default_factory=list)
    features: list[FeatureRow] = field(default_factory=list)
    prefix: list[PrefixRow] = field(default_factory=list)
    stall: list[StallRow] = field(default_factory=list)
    side: list[SideRow] = field(default_factory=list)
    cancel: list[CancelRow] = field(default_factory=list)
    overload: list[OverloadRow] = field(default_factory=list)
    rows: list[RowsRow] = field(default_factory=list)
    embeddings: list[EmbeddingRow] = field(default_factory=list)
    first: list[FirstRow] = field(default_factory=list)
    lengths: list[LengthsRow] = field(default_factory=list)
    disk: list[DiskRow] = field(default_factory=list)


def markdown(results: Results, chart: str | None) -> str:
    """`chart` is the file name of the chart, if there is one."""
    sections = [
        _first(results.first),
        _lengths(results.lengths),
        _throughput(results.throughput),
        _features(results.features),
        _prefix(results.prefix),
        _disk(results.disk),
        _stall(results.stall),
        _side(results.side),
        _cancel(results.cancel),
        _overload(results.overload),
        _rows(results.rows),
        _embeddings(results.embeddings),
        _ceiling(results.ceiling),
    ]
    picture = f"![Throughput over streams, and waiting times]({chart})\n" if chart is not None else ""
    return "\n".join([str(results.circumstances), *filter(None, [*sections, picture])])


def _throughput(rows: list[Row]) -> str:
    return _table(
        "Throughput",
        "model | streams | tok/s | raw tok/s | efficiency | lean tok/s | over lean | API us/tok "
        "| engine us/tok | raw us/tok | generator us/tok | tok/chunk | TTFT p50 / p95 ms "
        "| raw TTFT p95 | ITL p50 / p95 / max ms | raw ITL p95 | API / engine peak MB",
        [
            [
                row.model,
                str(row.concurrency),
                f"{row.server.tokens_per_second:.0f}",
                _number(row.raw.tokens_per_second if row.raw else None),
                _number(row.efficiency, 2),
                _number(row.lean_tokens_per_second),
                _number(row.over_lean, 2),
                _number(row.server.api_cpu_us),
                _number(row.server.engine_cpu_us),
                _number(row.raw.engine_cpu_us if row.raw else None),
                _number(row.server.generator_cpu_us),
                f"{row.server.tokens_per_chunk:.2f}",
                f"{row.server.ttft_p50:.0f} / {row.server.ttft_p95:.0f}",
                _number(row.raw.ttft_p95 if row.raw else None),
                f"{row.server.itl_p50:.1f} / {row.server.itl_p95:.1f} / {row.server.itl_max:.0f}",
                _number(row.raw.itl_p95 if row.raw else None, 1),
                f"{_number(row.server.api_peak_mb)} / {_number(row.server.engine_peak_mb)}",
            ]
            for row in rows
        ],
    )


def _first(rows: list[FirstRow]) -> str:
    return _table(
        "The first requests",
        "model | request | ms after /ready | later ms | ratio",
        [[row.model, row.request, f"{row.first_ms:.0f}", f"{row.later_ms:.0f}", f"{row.ratio:.2f}"] for row in rows],
    )


def _lengths(rows: list[LengthsRow]) -> str:
    return _table(
        "Prompts of new lengths",
        "model | lengths | TTFT of a new length ms | of a known one ms | ratio | longest ratio",
        [
            [
                row.model,
                str(row.lengths),
                f"{row.new_ms:.1f}",
                f"{row.known_ms:.1f}",
                f"{row.ratio:.2f}",
                f"{row.longest_ratio:.2f}",
            ]
            for row in rows
        ],
    )


def _features(rows: list[FeatureRow]) -> str:
    return _table(
        "What features cost",
        "model | every stream has | streams | tok/s | plain tok/s | ratio | API / engine peak MB",
        [
            [
                row.model,
                row.feature,
                str(row.streams),
                f"{row.tokens_per_second:.0f}",
                f"{row.plain_tokens_per_second:.0f}",
                f"{row.ratio:.2f}",
                _memory(row.memory),
            ]
            for row in rows
        ],
    )


def _prefix(rows: list[PrefixRow]) -> str:
    return _table(
        "Prefix cache",
        "model | pattern | prompt tokens | seen before | cached, as the server says | TTFT ms | compared with ms "
        "| ratio | API / engine peak MB",
        [
            [
                row.model,
                row.pattern,
                _number(row.prompt_tokens),
                _number(row.ready_tokens),
                _number(row.cached_tokens),
                f"{row.ttft_ms:.1f}",
                _number(row.compared_ms, 1),
                _number(row.ratio, 2),
                _memory(row.memory),
            ]
            for row in rows
        ],
    )


def _disk(rows: list[DiskRow]) -> str:
    return _table(
        "Prefix cache on disk",
        "model | prompt tokens | cached | cold TTFT ms | after a restart ms | ratio | MB written | step p50 / p95 ms "
        "| while writing ms | ratio of p50",
        [
            [
                row.model,
                _number(row.prompt_tokens),
                _number(row.cached_tokens),
                f"{row.cold_ms:.0f}",
                f"{row.restarted_ms:.0f}",
                f"{row.ratio:.3f}",
                f"{row.written_mb:.0f}",
                f"{row.gap_ms:.2f} / {row.gap_p95_ms:.2f}",
                f"{row.gap_writing_ms:.2f} / {row.gap_writing_p95_ms:.2f}",
                f"{row.gap_ratio:.2f}",
            ]
            for row in rows
        ],
    )


def _stall(rows: list[StallRow]) -> str:
    return _table(
        "A long prompt beside running streams",
        "model | streams | long prompt | chunks/s before | during | kept | longest gap ms | long TTFT ms "
        "| alone ms | ratio | API / engine peak MB",
        [
            [
                row.model,
                str(row.streams),
                str(row.long_prompt_tokens),
                f"{row.chunks_per_second_before:.0f}",
                f"{row.chunks_per_second_during:.0f}",
                f"{row.rate_kept:.0%}",
                f"{row.longest_gap_ms:.0f}",
                f"{row.long_ttft_ms:.0f}",
                f"{row.long_ttft_alone_ms:.0f}",
                f"{row.ttft_ratio:.2f}",
                _memory(row.memory),
            ]
            for row in rows
        ],
    )


def _side(rows: list[SideRow]) -> str:
    return _table(
        "A short request beside a long prompt",
        "model | long prompt | short prompt | TTFT alone ms | beside ms | longest ms | later by ms "
        "| API / engine peak MB",
        [
            [
                row.model,
                str(row.long_prompt_tokens),
                str(row.side_tokens),
                f"{row.alone_ms:.0f}",
                f"{row.beside_ms:.0f}",
                f"{row.longest_beside_ms:.0f}",
                f"{row.later_ms:.0f}",
                _memory(row.memory),
            ]
            for row in rows
        ],
    )


def _cancel(rows: list[CancelRow]) -> str:
    return _table(
        "Clients that leave",
        "model | streams dropped | worker idle after ms | next TTFT ms | TTFT alone ms | ratio | API / engine peak MB",
        [
            [
                row.model,
                str(row.streams),
                _number(row.idle_ms),
                f"{row.next_ttft_ms:.1f}",
                f"{row.ttft_alone_ms:.1f}",
                f"{row.ttft_ratio:.2f}",
                _memory(row.memory),
            ]
            for row in rows
        ],
    )


def _overload(rows: list[OverloadRow]) -> str:
    return _table(
        "Overload",
        "model | requests at once | answered | refused (429) | failed | most places out of turn | last TTFT ms "
        "| raw last TTFT ms | ratio | API / engine peak MB",
        [
            [
                row.model,
                str(row.requests),
                f"{row.answered:.0f}",
                f"{row.refused:.0f}",
                f"{row.failed:.0f}",
                str(row.displacement),
                f"{row.last_ttft_ms:.0f}",
                _number(row.raw_last_ttft_ms),
                _number(row.ratio, 2),
                _memory(row.memory),
            ]
            for row in rows
        ],
    )


def _rows(rows: list[RowsRow]) -> str:
    return _table(
        "Rows of different lengths, and a burst of prompts",
        "model | tok/s of 16 x 500 tokens | of 1 x 16,000 and 15 x 500 | ratio | tokens MB | held MB | counted MB "
        "| longest gap in the burst ms | its longest chunk ms | a decode step ms "
        "| its graph for 8 rows ms | compiled ms",
        [
            [
                row.model,
                f"{row.even_tokens_per_second:.0f}",
                f"{row.mixed_tokens_per_second:.0f}",
                f"{row.ratio:.2f}",
                f"{row.tokens_mb:.0f}",
                f"{row.held_mb:.0f}",
                f"{row.charged_mb:.0f}",
                f"{row.longest_gap_ms:.1f}",
                f"{row.chunk_ms:.1f}",
                f"{row.step_ms:.1f}",
                f"{row.graph_ms:.2f}",
                f"{row.compiled_graph_ms:.2f}",
            ]
            for row in rows
        ],
    )


def _embeddings(rows: list[EmbeddingRow]) -> str:
    return _table(
        "Embeddings",
        "texts | tokens | at once ms | plain loop ms | speedup | one text ms | its forward pass ms | ratio "
        "| tok/s of streams alone | beside a job | kept | API / engine peak MB",
        [
            [
                str(row.texts),
                str(row.tokens),
                f"{row.at_once_ms:.0f}",
                f"{row.loop_ms:.0f}",
                f"{row.speedup:.2f}",
                f"{row.alone_ms:.1f}",
                f"{row.forward_ms:.1f}",
                f"{row.alone_ratio:.2f}",
                f"{row.tokens_per_second_alone:.0f}",
                f"{row.tokens_per_second_beside:.0f}",
                f"{row.rate_kept:.0%}",
                _memory(row.memory),
            ]
            for row in rows
        ],
    )


def _ceiling(rows: list[CeilingRow]) -> str:
    return _table(
        "The load generator's ceiling",
        "streams | chunks/s | generator us/chunk",
        [[str(row.streams), f"{row.chunks_per_second:.0f}", f"{row.cpu_us:.1f}"] for row in rows],
    )


def _table(title: str, head: str, rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown; empty without rows."""
    if not rows:
        return ""
    rule = " | ".join("---" for _ in head.split(" | "))
    lines = [f"### {title}", "", f"| {head} |", f"| {rule} |", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int = 0) -> str:
    return f"{value:.{digits}f}" if value is not None else "-"


def _memory(memory: PeakMemory | None) -> str:
    return f"{memory.api_mb:.0f} / {memory.engine_mb:.0f}" if memory is not None else "-"


def _card() -> str:
    """The GPU. Figures measured on one are no ratios to another machine's."""
    if not computes_on_gpu():
        return ""
    info = mx.device_info()
    return f", {info.get('device_name', 'GPU')} ({info.get('architecture', 'unknown architecture')})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
