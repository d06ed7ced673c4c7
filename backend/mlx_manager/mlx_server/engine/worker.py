"""The worker process: loads one model, and steps the engine on the messages that come over the socket.

The main thread owns MLX. A reader thread takes messages in, and ends the process when the API is gone. A third sends a
heartbeat every second, which tells a long step from a process that is stopped. Knows token ids; knows no HTTP, no JSON,
no chat. Run as `python -m mlx_manager.mlx_server.engine.worker --socket-fd N --model FOLDER`.
"""

import argparse
import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec

from mlx_manager.mlx_server.engine.messages import (
    LENGTH_BYTES,
    Cancel,
    Capacity,
    Device,
    DownMessage,
    Heartbeat,
    Limits,
    LoadFailed,
    Ready,
    Shutdown,
    Stats,
    Submit,
    UpMessage,
    decode_down,
    encode_up,
)
from mlx_manager.mlx_server.utils.descriptors import own_descriptor_limit
from mlx_manager.mlx_server.utils.memory import trim_allocator

with own_descriptor_limit():
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_config, load_model

    from mlx_manager.mlx_server.engine.core import EngineCore, EngineLimits
    from mlx_manager.mlx_server.engine.model_config import complete, model_classes
    from mlx_manager.mlx_server.engine.prompt_queue import MAX_GROUP_ROWS

HEARTBEAT_SECONDS = 1.0
GATHER_SECONDS = 0.002
RELEASE_SECONDS = 60.0
"""An engine that has been idle for so long gives the buffers back that MLX keeps for reuse."""
TRIM_SECONDS = 1.0
"""And after so long what only the allocator holds on to, which grows under mixed loads."""


def main() -> None:
    arguments = _parse_arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the API decides when a worker ends
    connection = socket.socket(fileno=arguments.socket_fd)
    inbox: queue.SimpleQueue[DownMessage] = queue.SimpleQueue()
    threading.Thread(target=_read_messages, args=(connection, inbox), daemon=True).start()
    voice = Voice(connection)
    threading.Thread(target=voice.send_heartbeats, daemon=True).start()
    limits = Limits(arguments.memory_limit_bytes, arguments.buffer_limit_bytes, arguments.prefix_cache_bytes)
    _prepare_device(limits, arguments.wire_memory)
    voice.send([_device()])
    try:
        model = load(arguments.model, arguments.adapter, arguments.trust_remote_code)
        weights_bytes = mx.get_active_memory()
        core = make_core(model, arguments, _kv_bytes(limits, weights_bytes))
    except Exception as exc:  # a model's files may make mlx-lm raise anything
        voice.send([LoadFailed(f"{type(exc).__name__}: {exc}")])
        raise
    voice.send([_ready(core)])
    run(core, inbox, voice, weights_bytes)


class Voice:
    """What the worker has to say to the API, from two threads: the stepping one, and the heartbeat's."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._step_began: float | None = None

    def send(self, messages: list[UpMessage]) -> None:
        with self._sending:
            self._connection.sendall(encode_up(messages))

    def step_begins(self) -> None:
        self._step_began = time.monotonic()

    def step_ended(self) -> None:
        self._step_began = None

    def send_heartbeats(self) -> None:
        """Runs on the heartbeat's thread until the API is gone, and with it the process."""
        with contextlib.suppress(OSError):
            while True:
                began = self._step_began
                step_seconds = time.monotonic() - began if began is not None else 0.0
                self.send([Heartbeat(step_seconds, mx.get_active_memory())])
                time.sleep(HEARTBEAT_SECONDS)


def _prepare_device(limits: Limits, wire_memory: bool) -> None:
    """On the CPU, MLX would compile fused kernels with the system's C++ compiler while the first request waits."""
    if _computes_on_cpu():
        mx.disable_compile()
    _set_limits(limits)
    recommended_bytes = mx.device_info().get("max_recommended_working_set_size")
    if wire_memory and recommended_bytes is not None:
        mx.set_wired_limit(int(recommended_bytes))


def _device() -> Device:
    info = mx.device_info()
    if "max_recommended_working_set_size" in info:
        return Device("metal", int(info["max_recommended_working_set_size"]))
    if "total_memory" in info:
        return Device("cuda", int(info["total_memory"]))
    return Device("cpu", None)


def _set_limits(limits: Limits) -> None:
    """Bounds what MLX takes and keeps: MLX's limits are this process's alone."""
    mx.set_memory_limit(limits.memory_bytes)
    mx.set_cache_limit(limits.buffer_bytes)


def _computes_on_cpu() -> bool:
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def load(folder: Path, adapter: Path | None = None, trust_remote_code: bool = False) -> nn.Module:
    """The model with its weights in memory; float32 where MLX computes on the CPU, which is slow at 16 bits."""
    config = complete(load_config(folder))
    model, _ = load_model(
        folder, model_config=config, get_model_classes=model_classes, trust_remote_code=trust_remote_code
    )
    _keep_masked_tokens_in_vocabulary(model)
    if adapter is not None:
        model = load_adapters(model, str(adapter)).eval()
        mx.eval(model.parameters())
    if _computes_on_cpu():
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    return model


def _keep_masked_tokens_in_vocabulary(model: nn.Module) -> None:
    """mlx-lm's phi3small masks 91 token ids of its first model. In a smaller vocabulary, that writes out of bounds."""
    masked = getattr(model, "_dummy_tokenizer_ids", None)
    if masked is not None:
        ids: Any = masked.tolist()
        model._dummy_tokenizer_ids = mx.array([token for token in ids if token < model.args.vocab_size], mx.int32)


def _kv_bytes(limits: Limits, weights_bytes: int) -> int:
    """For KV caches: what the weights leave of the worker's memory, but for a tenth of it for a step's own arrays."""
    return max(0, int(0.9 * (limits.memory_bytes - weights_bytes)))


def make_core(model: nn.Module, arguments: argparse.Namespace, kv_bytes: int) -> EngineCore:
    return EngineCore(
        model,
        EngineLimits(
            kv_bytes=kv_bytes,
            prefix_bytes=arguments.prefix_cache_bytes,
            inter_token_seconds=arguments.inter_token_latency_ms / 1000,
        ),
        tokenizer_file=arguments.model / "tokenizer.json",
    )


def _ready(core: EngineCore) -> Ready:
    memory = core.memory
    return Ready(core.vocabulary_size, mx.get_active_memory(), memory.bytes_per_token, memory.largest_sequence_tokens)


def run(core: EngineCore, inbox: "queue.SimpleQueue[DownMessage]", voice: Voice, weights_bytes: int) -> None:
    """Steps the engine until a Shutdown. Messages are read between steps: a cancel waits for one step at most."""
    next_stats = time.monotonic() + HEARTBEAT_SECONDS
    busy_at, is_trimmed = time.monotonic(), False
    while True:
        messages = _take_messages(inbox, idle=not core.has_work, gather=core.busiest > 1)
        voice.step_begins()
        if messages or len(core) > 0:
            busy_at, is_trimmed = time.monotonic(), False
        elif time.monotonic() - busy_at >= RELEASE_SECONDS and mx.get_cache_memory() > 0:
            core.release_memory()
        elif time.monotonic() - busy_at >= TRIM_SECONDS and not is_trimmed:
            trim_allocator()
            is_trimmed = True
        events: list[UpMessage] = []
        for message in messages:
            match message:
                case Submit():
                    core.submit(message)
                case Cancel(sequence):
                    core.cancel(sequence)
                case Limits():
                    _set_limits(message)
                    core.limit(_kv_bytes(message, weights_bytes), message.prefix_cache_bytes)
                    events.append(Capacity(core.memory.largest_sequence_tokens, message.memory_bytes))
                case Shutdown():
                    return
        events += core.step()
        if time.monotonic() >= next_stats:
            events.append(_stats(core))
            next_stats = time.monotonic() + HEARTBEAT_SECONDS
        if events:
            voice.send(events)
        voice.step_ended()


def _take_messages(inbox: "queue.SimpleQueue[DownMessage]", idle: bool, gather: bool) -> list[DownMessage]:
    """All messages that wait. An idle engine waits for one, until its next stats are due.

    With `gather` it waits a moment for those behind it, so that requests that come together begin together.
    """
    messages: list[DownMessage] = []
    try:
        if idle:
            messages.append(inbox.get(timeout=HEARTBEAT_SECONDS))
        while idle and gather and len(messages) < MAX_GROUP_ROWS:
            messages.append(inbox.get(timeout=GATHER_SECONDS))
        while True:
            messages.append(inbox.get_nowait())
    except queue.Empty:
        return messages


def _stats(core: EngineCore) -> Stats:
    prefixes = core.prefixes
    return Stats(
        active_bytes=mx.get_active_memory(),
        peak_bytes=mx.get_peak_memory(),
        cache_bytes=mx.get_cache_memory(),
        sequences=len(core),
        prefix_bytes=prefixes.nbytes,
        prefix_hits=prefixes.hits,
        prefix_tokens=prefixes.cached_tokens,
        prefix_evictions=prefixes.evictions,
        running=core.running,
    )


def _read_messages(connection: socket.socket, inbox: "queue.SimpleQueue[DownMessage]") -> None:
    """Runs on the reader thread until the API closes the socket or dies, and ends the process then.

    A frame that cannot be decoded ends it, too: no message would be read after it.
    """
    stream = connection.makefile("rb")
    status = 1
    try:
        while len(length := stream.read(LENGTH_BYTES)) == LENGTH_BYTES:
            inbox.put(decode_down(stream.read(int.from_bytes(length, "big"))))
        status = 0
    except msgspec.MsgspecError as exc:
        print(f"The API process sent a message that this worker cannot read: {exc}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One model's worker process; started by the server.")
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--memory-limit-bytes", type=int, required=True, help="weights and KV caches together")
    parser.add_argument("--buffer-limit-bytes", type=int, required=True, help="freed memory that MLX may keep")
    parser.add_argument("--prefix-cache-bytes", type=int, required=True, help="0 turns the prefix cache off")
    parser.add_argument("--inter-token-latency-ms", type=int, required=True)
    parser.add_argument("--adapter", type=Path, help="folder of a LoRA adapter for the model")
    parser.add_argument("--wire-memory", action="store_true", help="keep the model wired in a Mac's memory")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the model's folder brings")
    return parser.parse_args()


if __name__ == "__main__":
    main()
