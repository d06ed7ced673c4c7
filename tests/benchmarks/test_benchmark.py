"""The benchmark, run small: its figures are its own business, that there are any is ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.workload import StreamTimes, Workload, percentile, summarise

ROOT = Path(__file__).parents[2]


def test_benchmark_measures_server_and_raw_engine_and_writes_table_json_and_chart(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--sizes", "a", "--concurrency", "1", "3", "--runs", "1"]
    ran = subprocess.run(
        [*command, "--tokens", "8", "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["concurrency"] for row in rows] == [1, 3]
    for row in rows:
        assert row["efficiency"] == pytest.approx(row["server"]["tokens_per_second"] / row["raw"]["tokens_per_second"])
        assert 1 <= row["server"]["tokens_per_chunk"] <= 8
        assert row["server"]["ttft_p50"] > 0
    assert (tmp_path / "results.md").read_text() in ran.stdout
    assert (tmp_path / "results.svg").read_text().startswith("<?xml")


def test_prompts_are_unique_and_the_same_for_a_seed() -> None:
    waves = Workload(concurrency=20, waves=5, prompt_words=4, output_tokens=1, seed=3).prompts()
    assert len({prompt for wave in waves for prompt in wave}) == 100
    assert waves == Workload(concurrency=20, waves=5, prompt_words=4, output_tokens=1, seed=3).prompts()


def test_latencies_are_those_of_the_streams() -> None:
    wave = [StreamTimes([0.1, 0.2, 0.4], tokens=3), StreamTimes([0.3, 0.35], tokens=4)]
    measured = summarise([wave], wall_seconds=2)
    assert measured.tokens_per_second == 3.5
    assert measured.tokens_per_chunk == 7 / 5
    assert measured.ttft_p50 == pytest.approx(200)
    assert measured.itl_max == pytest.approx(200)
    assert percentile([1, 2, 3, 4], 95) == 4
