"""Worker processes: what they are started with, what ends them, and models that would."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import psutil
import pytest
from mlx.utils import tree_flatten

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.generator import load
from mlx_manager.mlx_server.engine.launch import worker_command, worker_environment
from mlx_manager.mlx_server.engine.messages import (
    LENGTH_BYTES,
    Cancel,
    Launch,
    Limits,
    Ready,
    RequestFinished,
    Shutdown,
    Step,
    Submit,
    UpMessage,
    decode_up,
    encode_down,
)
from mlx_manager.mlx_server.errors import EngineFailed, InvalidRequest
from mlx_manager.mlx_server.utils.mlx_backend import computes_on_cpu
from tests.architectures.tiny_models import build, config_of
from tests.pools import GREEDY, generate, pool_of
from tests.running_server import HANG_SECONDS


def receive(connection: socket.socket) -> Iterator[UpMessage]:
    stream = connection.makefile("rb")
    while length := stream.read(LENGTH_BYTES):
        yield from decode_up(stream.read(int.from_bytes(length, "big")))


@contextlib.contextmanager
def started(*launcher: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A worker behind a launcher, as one would run it on another machine: only its stdin leads to it."""
    ours, theirs = socket.socketpair()
    with ours:
        command = [*launcher, *worker_command()]
        process = subprocess.Popen(command, stdin=theirs.fileno(), stderr=subprocess.PIPE, env=worker_environment())
        theirs.close()
        ours.settimeout(HANG_SECONDS)
        try:
            yield process, ours
        finally:
            process.kill()
            process.communicate()


def test_worker_behind_a_launcher_loads_what_the_first_message_says(babbler: Path) -> None:
    with started("/usr/bin/env", "UNUSED=1") as (process, connection):
        connection.sendall(encode_down(Launch("generate", str(babbler), Limits(2**32, 2**20, 0))))
        connection.sendall(encode_down(Submit(5, [1, 2], 3, [], GREEDY)))
        tokens: list[int] = []
        for message in receive(connection):
            if isinstance(message, Ready):
                assert message.model.vocabulary_size > 2
            if isinstance(message, Step):
                tokens += message.tokens
            if isinstance(message, RequestFinished):
                connection.sendall(encode_down(Shutdown()))
        assert len(tokens) == 3
        assert process.wait(HANG_SECONDS) == 0


def test_worker_that_is_told_anything_before_what_to_load_ends(babbler: Path) -> None:
    with started() as (process, connection):
        connection.sendall(encode_down(Cancel(1)))
        assert list(receive(connection)) == []
        assert process.stderr is not None
        assert b"Cancel before Launch" in process.stderr.read()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process's stdin is")
async def test_code_in_a_worker_that_reads_stdin_finds_it_empty(babbler: Path) -> None:
    async with pool_of(babbler) as pool, pool.lease("babbler") as model:
        assert os.readlink(f"/proc/{model.engine.pid}/fd/0") == os.devnull


@pytest.mark.skipif(not list(Path("/usr/lib").glob("*/libopenblas.so.0")), reason="there is no OpenBLAS to prefer")
@pytest.mark.skipif(not computes_on_cpu(), reason="MLX multiplies on a GPU")
async def test_worker_on_the_cpu_multiplies_with_the_systems_openblas(babbler: Path) -> None:
    async with pool_of(babbler) as pool, pool.lease("babbler") as model:
        mapped = {library.path for library in psutil.Process(model.engine.pid).memory_maps()}
        assert [path for path in mapped if path.startswith("/usr/lib/") and "openblas" in path]


async def test_frame_that_cannot_be_decoded_ends_the_worker_and_the_next_request_gets_another(babbler: Path) -> None:
    async with pool_of(babbler) as pool:
        async with (
            pool.lease("babbler") as model,
            model.engine.generate([Submit(0, [1, 2], 100_000, [], GREEDY)]) as sequences,
        ):
            await anext(sequences)
            model.engine._worker.writer.write(b"\x00\x00\x00\x03abc")
            with pytest.raises(EngineFailed, match="Cannot decode"):
                [tokens async for tokens in sequences]
        async with pool.lease("babbler") as model:
            assert len(await generate(model)) == 5


async def test_sequence_that_does_not_fit_into_memory_is_the_clients_fault(babbler: Path) -> None:
    async with pool_of(babbler) as pool, pool.lease("babbler") as model:
        with pytest.raises(InvalidRequest, match=r"needs \d+ tokens \(prompt 2 \+ completion \d+\)"):
            await generate(model, max_tokens=2**40)


def test_phi3small_with_a_small_vocabulary_masks_no_token_beyond_it(tmp_path: Path) -> None:
    """mlx-lm masks the ids that the first model of the family leaves out, up to 100,351."""
    config = config_of("phi3small")
    weights: dict[str, mx.array] = dict(tree_flatten(build("phi3small").parameters()))
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:4096]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 4096}))
    core = EngineCore(load(tmp_path))
    core.submit(Submit(0, [1, 2, 3], 3, [], GREEDY))
    while len(core):
        core.step()
    assert core.vocabulary_size == 4096
