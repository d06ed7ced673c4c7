"""An encoder on the CPU leaves time to models that generate: it rests between batches, and only then."""

import asyncio
import socket
from array import array
from pathlib import Path

import pytest

from mlx_manager.mlx_server.engine.encoder import Encoder
from mlx_manager.mlx_server.engine.encoder_client import EncoderClient
from mlx_manager.mlx_server.engine.launch import Worker
from mlx_manager.mlx_server.engine.messages import (
    LENGTH_BYTES,
    DownMessage,
    Encode,
    Encoded,
    Launch,
    Limits,
    Neighbours,
    decode_down,
    encode_up,
)
from mlx_manager.mlx_server.engine.watchdog import WatchdogLimits
from mlx_manager.mlx_server.engine.worker_client import Supervision
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.utils.mlx_backend import computes_on_cpu
from tests.mlx_server.engine.embedding.tiny import EMBEDDERS, make_model

LIMITS = Limits(2**32, 2**20, 0)
TEXTS = 64


def run_job(encoder: Encoder, *messages: DownMessage) -> tuple[int, int]:
    """Runs a job of many batches. Returns the numbers of encoded texts, and of steps without a batch."""
    for message in (*messages, Encode(1, [64] * TEXTS, array("i", [5] * 64 * TEXTS).tobytes(), [], 32)):
        encoder.take(message)
    texts = rests = 0
    while encoder.has_work:
        events = encoder.step()
        texts += sum(len(event.places) for event in events if isinstance(event, Encoded))
        rests += not events
    return texts, rests


@pytest.mark.skipif(not computes_on_cpu(), reason="encoders rest only where MLX computes on the CPU")
def test_an_encoder_rests_between_batches_only_while_models_generate(tmp_path: Path) -> None:
    encoder = Encoder(Launch("embed", str(make_model(tmp_path / "bert", EMBEDDERS["bert"])), LIMITS))
    assert run_job(encoder) == (TEXTS, 0)
    texts, rests = run_job(encoder, Neighbours(generating=True))
    assert texts == TEXTS
    assert rests > 0
    assert run_job(encoder, Neighbours(generating=False)) == (TEXTS, 0)


async def receive(reader: asyncio.StreamReader) -> DownMessage:
    return decode_down(await reader.readexactly(int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")))


async def test_a_worker_learns_between_batches_that_models_generate() -> None:
    generating = False
    supervision = Supervision(
        watchdog=WatchdogLimits(),
        on_death=lambda client: None,
        on_progress=lambda nbytes: None,
        on_device=lambda device: None,
        on_warm_up=lambda: None,
        is_generating=lambda: generating,
    )
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)
    process = await asyncio.create_subprocess_exec("sleep", "300", stderr=asyncio.subprocess.PIPE)
    client = EncoderClient("bert", Worker(process, *await asyncio.open_connection(sock=ours)), LIMITS, supervision)
    encoding = asyncio.create_task(client.encode([[5], [6]], GenerationRecord(), dimensions=1))
    assert isinstance(await receive(reader), Encode)
    generating = True
    writer.write(encode_up([Encoded(0, [0], bytes(4), 0.0)]))
    assert await receive(reader) == Neighbours(generating=True)
    generating = False
    writer.write(encode_up([Encoded(0, [1], bytes(4), 0.0)]))
    assert await receive(reader) == Neighbours(generating=False)
    assert await encoding == bytes(8)
    writer.close()
    await client.close()
