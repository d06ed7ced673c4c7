"""The benchmark, run small: its figures are its own business, that there are any is ours."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.running_server import HANG_SECONDS, RunningServer

ROOT = Path(__file__).parents[2]
SMALL = (
    "--concurrency 3 --runs 1 --tokens 8 --prefix-tokens 64 --long-prompt-tokens 600 --bursts 12 --lengths 2".split()
)
SECTIONS = "throughput features prefix side cancel overload ceiling".split()


def run_benchmark(out: Path, *arguments: str) -> dict[str, Any]:
    """What it wrote to results.json."""
    command = [sys.executable, "-m", "benchmarks", *SMALL, *arguments, "--out", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert ran.returncode == 0, ran.stderr
    assert (out / "results.md").read_text() in ran.stdout
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ours")


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return run_benchmark(out, "--sizes", "a", "--sections", *SECTIONS)


@pytest.mark.slow
def test_throughput_is_compared_with_the_raw_engine(results: dict[str, Any]) -> None:
    assert [row["concurrency"] for row in results["throughput"]] == [3]
    for row in results["throughput"]:
        assert row["efficiency"] == pytest.approx(row["server"]["tokens_per_second"] / row["raw"]["tokens_per_second"])
        assert row["over_lean"] == pytest.approx(row["server"]["tokens_per_second"] / row["lean_tokens_per_second"])
        assert 1 <= row["server"]["tokens_per_chunk"] <= 8
        assert row["server"]["ttft_p50"] > 0
        assert row["server"]["engine_peak_mb"] > 0


@pytest.mark.slow
def test_prompts_have_as_many_tokens_as_the_table_says(results: dict[str, Any]) -> None:
    rows = {row["pattern"]: row for row in results["prefix"]}
    assert {name: (row["prompt_tokens"], row["ready_tokens"]) for name, row in rows.items()} == {
        "cold": (104, 0),
        "shared system prompt": (104, 64),
        "growing conversation": (144, 104),
        "exact repeat": (64, 63),
        "edited earlier turn": (104, 64),
        "six in alternation": (104, 64),
        "eight at once, cold": (104, 0),
    }
    assert all(row["ratio"] > 0 and row["memory"]["engine_mb"] > 0 for row in rows.values())


@pytest.mark.slow
def test_cancel_overload_and_ceiling_have_their_figures(results: dict[str, Any]) -> None:
    (cancel,), (overload,), (ceiling,) = results["cancel"], results["overload"], results["ceiling"]
    assert cancel["idle_ms"] >= 0
    assert cancel["next_ttft_ms"] > 0
    assert (overload["answered"], overload["refused"], overload["failed"]) == (12, 0, 0)
    assert overload["ratio"] == pytest.approx(overload["last_ttft_ms"] / overload["raw_last_ttft_ms"])
    assert ceiling["chunks_per_second"] > 0


@pytest.mark.slow
def test_first_requests_and_new_lengths_are_compared_with_later_ones(tmp_path: Path) -> None:
    results = run_benchmark(tmp_path, "--scenario-sizes", "a", "--sections", "first", "lengths")
    assert len(results["first"]) == 7
    for row in results["first"]:
        assert row["ratio"] == pytest.approx(row["first_ms"] / row["later_ms"])
    (lengths,) = results["lengths"]
    assert lengths["lengths"] == 2
    assert lengths["longest_ratio"] >= lengths["ratio"] > 0
    table = (tmp_path / "results.md").read_text()
    assert "### The first requests\n" in table
    assert "### Prompts of new lengths\n" in table


@pytest.mark.slow
def test_features_are_compared_with_plain_streams(results: dict[str, Any]) -> None:
    assert len(results["features"]) == 3
    assert all(row["ratio"] > 0 for row in results["features"])


@pytest.mark.slow
def test_short_request_beside_a_long_prompt_is_compared_with_one_alone(results: dict[str, Any]) -> None:
    (side,) = results["side"]
    assert side["later_ms"] == pytest.approx(side["beside_ms"] - side["alone_ms"])
    assert side["longest_beside_ms"] >= side["beside_ms"] > 0


@pytest.mark.slow
def test_table_and_chart_cover_what_was_measured(results: dict[str, Any], out: Path) -> None:
    table, chart = (out / "results.md").read_text(), (out / "results.svg").read_text()
    titles = ["Throughput", "Prefix cache", "Clients that leave", "Overload", "The load generator's ceiling"]
    for title in titles:
        assert f"### {title}\n" in table
    assert "(results.svg)" in table
    assert chart.startswith("<?xml")


@pytest.mark.slow
def test_any_other_server_is_measured_without_raw_and_process_figures(server: RunningServer, tmp_path: Path) -> None:
    sections = ["throughput", "prefix", "stall", "cancel", "overload"]
    results = run_benchmark(tmp_path, "--base-url", server.url, "--model", "babbler", "--sections", *sections)
    assert {name for name, rows in results.items() if rows} == {"circumstances", *sections}
    assert results["throughput"][0]["raw"] is None
    assert {row["memory"] for row in results["prefix"]} == {None}
    assert results["cancel"][0]["idle_ms"] is None
    (stall,) = results["stall"]
    assert stall["chunks_per_second_before"] > 0
    assert stall["longest_gap_ms"] > 0
    assert stall["ttft_ratio"] == pytest.approx(stall["long_ttft_ms"] / stall["long_ttft_alone_ms"])


@pytest.mark.slow
def test_embeddings_are_compared_with_a_plain_loop(tmp_path: Path) -> None:
    (row,) = run_benchmark(tmp_path, "--sizes", "a", "--sections", "embeddings")["embeddings"]
    assert (row["texts"], row["speedup"]) == (64, pytest.approx(row["loop_ms"] / row["at_once_ms"]))
    assert row["alone_ratio"] == pytest.approx(row["alone_ms"] / row["forward_ms"])
    assert row["rate_kept"] > 0
