"""The prefix cache on a real disk: restarts, faults of the disk and damaged files change no token."""

import itertools
import os
import random
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest
from safetensors import safe_open

from mlx_manager.mlx_server.engine import disk_files
from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.disk_cache import DiskOptions
from mlx_manager.mlx_server.engine.messages import Prefilled, Step, Submit
from mlx_manager.mlx_server.types import SamplingParams
from tests.mlx_server.engine.test_prefix_cache import END, SMALL, make_model, message
from tests.mlx_server.engine.test_prefix_fuzz import grown

GREEDY = SamplingParams(temperature=0, seed=0)
NUMBERS = itertools.count()
AMPLE = 2**30
LONG = [token for seed in range(3) for token in message(seed, 700)]


@pytest.fixture(scope="module", params=list(SMALL))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make_model(request.param)


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return make_model("llama")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "prefixes"


def engine(model: nn.Module, root: Path, budget_bytes: int = AMPLE, prefix_bytes: int = 2**28) -> EngineCore:
    """As a worker starts it; the model's files lie beside `root`."""
    disk = DiskOptions(root, budget_bytes, "small", str(root.parent / "model"), None)
    return EngineCore(model, prefix_bytes=prefix_bytes, disk=disk, inter_token_seconds=1e-4)


def ask(core: EngineCore, *prompts: list[int], keep_off_disk: bool = False) -> list[tuple[list[int], int]]:
    """All prompts at once: the tokens of each answer, and how many of its prompt were cached."""
    numbers = {next(NUMBERS): place for place in range(len(prompts))}
    for number, place in numbers.items():
        core.submit(Submit(number, prompts[place], 12, [END], GREEDY, keep_off_disk=keep_off_disk))
    answers: list[list[int]] = [[] for _ in prompts]
    cached = [0] * len(prompts)
    while core.has_work:
        for event in core.step():
            if isinstance(event, Step):
                for sequence, token in zip(event.sequences, event.tokens, strict=True):
                    answers[numbers[sequence]].append(token)
            elif isinstance(event, Prefilled):
                cached[numbers[event.sequence]] = event.cached_tokens
    return list(zip(answers, cached, strict=True))


def alone(model: nn.Module, prompt: list[int]) -> list[int]:
    return ask(EngineCore(model, prefix_bytes=0), prompt)[0][0]


def blocks(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.safetensors"))


def size_of(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def written(model: nn.Module, root: Path, *prompts: list[int]) -> list[Path]:
    """The files of an engine that has answered the prompts and was closed."""
    core = engine(model, root)
    for prompt in prompts or (LONG,):
        ask(core, prompt)
    core.close(60)
    return blocks(root)


def test_a_second_turn_after_a_restart_reads_the_first(model: nn.Module, root: Path) -> None:
    core = engine(model, root)
    ((answer, _),) = ask(core, LONG)
    core.close(60)
    prompt = LONG + answer + message(9, 20)
    core = engine(model, root)
    ((tokens, cached),) = ask(core, prompt)
    assert cached == core.disk.tokens >= len(LONG) - 256
    assert tokens == alone(model, prompt)


def test_bfloat16_which_numpy_does_not_have_comes_back_as_it_was(root: Path) -> None:
    model = make_model("sliding window")
    model.set_dtype(mx.bfloat16)
    (path, *_) = written(model, root)
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    assert {array.dtype for array in loaded.values()} == {mx.bfloat16}
    core = engine(model, root)
    ((tokens, cached),) = ask(core, [*LONG, 11])
    assert cached >= len(LONG) - 256
    assert tokens == alone(model, [*LONG, 11])
    core.close(60)


def test_files_are_safetensors_that_only_the_user_can_read(model: nn.Module, root: Path) -> None:
    text = LONG + alone(model, LONG)
    for path in written(model, root):
        with safe_open(path, "mlx") as file:
            tokens = [int(token) for token in file.metadata()["tokens"].split(",") if token]
            start = int(file.metadata()["start"])
            assert tokens == text[start : start + len(tokens)]
            assert all(isinstance(file.get_tensor(name), mx.array) for name in file.keys())  # noqa: SIM118
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_what_a_request_keeps_off_the_disk_is_not_there(llama: nn.Module, root: Path) -> None:
    core = engine(llama, root)
    ask(core, LONG, keep_off_disk=True)
    ask(core, LONG, keep_off_disk=True)
    core.close(60)
    assert blocks(root) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_no_answer_depends_on_what_is_on_disk(kind: str, root: Path) -> None:
    """The fuzz of the prefix cache with 2 MB of disk, restarts, and damage in every tenth file."""
    model, rng = make_model(kind), random.Random(2)
    plain, known, restored = EngineCore(model, prefix_bytes=0), [LONG], 0
    for _ in range(5):
        core = engine(model, root, budget_bytes=2_000_000, prefix_bytes=600_000)
        for _ in range(4):
            prompts = [grown(rng, known) for _ in range(rng.randint(1, 4))]
            for prompt, (tokens, _) in zip(prompts, ask(core, *prompts), strict=True):
                assert tokens == ask(plain, prompt)[0][0]
                known.append(prompt + tokens)
            known = [LONG, *(tokens for tokens in known if len(tokens) < 2500)][-8:]
        core.close(60)
        assert core.disk.fault == ""
        restored += core.disk.tokens
        assert size_of(root) <= 2_000_000
        for path in blocks(root)[::10]:
            damage(path, rng)
    assert restored > 0


def damage(path: Path, rng: random.Random) -> None:
    """Flips a bit anywhere in the file."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("fault", ["bit", "truncated", "empty", "another's content", "random"])
def test_a_damaged_file_is_skipped_and_removed(llama: nn.Module, root: Path, fault: str) -> None:
    files, rng = written(llama, root), random.Random(3)
    for path in files:
        content = path.read_bytes()
        match fault:
            case "bit":
                damage(path, rng)
            case "truncated":
                path.write_bytes(content[: rng.randrange(1, len(content))])
            case "empty":
                path.write_bytes(b"")
            case "another's content":
                path.write_bytes(files[(files.index(path) + 1) % len(files)].read_bytes())
            case "random":
                path.write_bytes(rng.randbytes(len(content)))
    expected = alone(llama, [*LONG, 11])
    core = engine(llama, root)
    assert ask(core, [*LONG, 11]) == [(expected, 0)]
    core.close(60)
    core = engine(llama, root)
    ((tokens, cached),) = ask(core, [*LONG, 11])
    assert tokens == expected
    assert cached == len(LONG) // 256 * 256, "the damaged files were replaced by whole ones"
    core.close(60)


def test_a_block_of_other_tokens_under_the_right_name_is_not_used(
    llama: nn.Module, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if two prompts had one hash: the tokens in the header decide."""
    monkeypatch.setattr("mlx_manager.mlx_server.engine.disk_format._hash", lambda parent, tokens, kind: "ab" * 16)
    written(llama, root, LONG)
    other = [token for seed in range(3) for token in message(seed + 50, 700)]
    core = engine(llama, root)
    assert ask(core, other) == [(alone(llama, other), 0)]
    core.close(60)


def test_other_weights_are_another_model(llama: nn.Module, root: Path) -> None:
    written(llama, root)
    config = root.parent / "model" / "config.json"
    os.utime(config, (1, 1))
    core = engine(llama, root)
    assert ask(core, LONG)[0][1] == 0
    core.close(60)
    assert len(list(root.glob("*/model.json"))) == 2


def test_what_no_model_can_read_goes_first_and_then_the_oldest(llama: nn.Module, root: Path) -> None:
    unreadable = written(llama, root)
    os.utime(root.parent / "model" / "config.json", (1, 1))
    usable = set(written(llama, root)) - set(unreadable)
    first = min(usable, key=lambda path: path.stat().st_mtime)
    engine(llama, root, budget_bytes=size_of(root) - 100).close(60)
    assert len(usable) < len(set(blocks(root))) < len(usable) + len(unreadable)
    assert set(blocks(root)) > usable
    engine(llama, root, budget_bytes=sum(path.stat().st_size for path in usable) + 600).close(60)
    assert set(blocks(root)) == usable
    engine(llama, root, budget_bytes=size_of(root) - 100).close(60)
    assert set(blocks(root)) == usable - {first}


def test_foreign_and_unfinished_files_are_removed_and_other_folders_are_not_ours(llama: nn.Module, root: Path) -> None:
    (path, *_) = written(llama, root)
    foreign, unfinished, mine = path.parent / "notes.txt", path.parent / ".unfinished-1", root / "mine" / "notes.txt"
    mine.parent.mkdir()
    for file in (foreign, unfinished, mine):
        file.write_text("text")
    os.utime(unfinished, (1, 1))
    engine(llama, root).close(60)
    assert not foreign.exists()
    assert not unfinished.exists()
    assert mine.exists()


def test_two_engines_share_a_folder(llama: nn.Module, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_manager.mlx_server.engine.disk_cache.LIST_SECONDS", 0.05)
    budget = 2_000_000
    first, second = engine(llama, root, budget), engine(llama, root, budget)
    prompts = [[token for part in range(2) for token in message(10 * n + part, 700)] for n in range(6)]
    for place, prompt in enumerate(prompts):
        core = (first, second)[place % 2]
        assert ask(core, prompt)[0][0] == alone(llama, prompt)
    first.close(60)
    assert size_of(root) <= budget
    deadline = time.monotonic() + 30
    while second.disk.nbytes != sum(block.stat().st_size for block in blocks(root)):  # it lists the folder anew
        assert time.monotonic() < deadline
        second.step()
    assert ask(second, [*prompts[4], 11])[0][1] > 1000, "it reads what the other has written"
    second.close(60)
    assert size_of(root) <= budget
    assert not list(root.rglob(".unfinished-*"))


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(root)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield root
    subprocess.run(["umount", "-l", str(root)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("floor_bytes", [None, 0])
def test_a_full_disk_turns_the_tier_off_and_fails_no_request(
    llama: nn.Module, small_disk: Path, floor_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the floor of free space, and, as if others had taken that too, when a write fails."""
    if floor_bytes is not None:
        monkeypatch.setattr(disk_files, "FREE_BYTES", floor_bytes)
        monkeypatch.setattr("shutil.disk_usage", lambda root: SimpleNamespace(total=1, used=0, free=AMPLE))
    core = engine(llama, small_disk)
    prompts = [[token for part in range(3) for token in message(10 * n + part, 700)] for n in range(5)]
    for prompt in prompts:
        assert ask(core, prompt)[0][0] == alone(llama, prompt)
    core.close(60)
    assert ("No space left" if floor_bytes == 0 else "MB are free") in core.disk.fault
    assert not list(small_disk.rglob(".unfinished-*"))
    again = engine(llama, small_disk)
    assert ask(again, [*prompts[0], 11])[0][0] == alone(llama, [*prompts[0], 11])


def test_a_read_only_folder_turns_the_tier_off_and_fails_no_request(llama: nn.Module, small_disk: Path) -> None:
    core = engine(llama, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert ask(core, LONG)[0][0] == alone(llama, LONG)
    core.close(60)
    assert "Read-only" in core.disk.fault
    core = engine(llama, small_disk)
    assert "Read-only" in core.disk.fault
    assert ask(core, LONG)[0][0] == alone(llama, LONG)


def test_a_budget_smaller_than_a_block_is_a_fault(llama: nn.Module, root: Path) -> None:
    core = engine(llama, root, budget_bytes=50_000)
    ask(core, LONG)
    core.close(60)
    assert "MLX_SERVER_PREFIX_DISK_GB" in core.disk.fault
    assert blocks(root) == []
