"""The worker process: loads one model and steps its engine, driven by messages from a socket. Knows no HTTP or chat.

The main thread owns MLX. A reader thread receives messages, and exits the process when the API closes the socket. A
third sends messages, and a heartbeat every second, which distinguishes a long step from a stopped process. Run as
`python -m mlx_manager.mlx_server.engine.worker` with the socket as stdin; the first message is a Launch.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, Protocol

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx.utils import tree_flatten

from mlx_manager.mlx_server.engine.device import computes_on_gpu, keep_kernels, this_device
from mlx_manager.mlx_server.engine.membership import Membership
from mlx_manager.mlx_server.engine.messages import (
    LENGTH_BYTES,
    LOST_RANK_STATUS,
    SAVE_SECONDS,
    DownMessage,
    Heartbeat,
    Joining,
    Launch,
    Limits,
    LoadFailed,
    ModelFacts,
    Ready,
    Shutdown,
    Stats,
    UpMessage,
    WarmingUp,
    decode_down,
    encode_up,
)
from mlx_manager.mlx_server.engine.ranks import Ranks, is_lost_rank
from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.utils import macos
from mlx_manager.mlx_server.utils.memory import trim_allocator

HEARTBEAT_SECONDS = 1.0
SWITCH_SECONDS = 0.0005
"""Longest time that the main thread keeps Python's lock from the thread that sends tokens."""
FLUSH_SECONDS = 5.0
"""The API may not read any more."""
GATHER_SECONDS = 0.002
RELEASE_SECONDS = 60.0
"""Idle time after which the engine releases the buffers that MLX keeps for reuse."""
TRIM_SECONDS = 1.0
"""Idle time after which the worker trims the memory allocator, whose unused memory grows under mixed loads."""


class WarmUpFailed(Exception):
    """The loaded model cannot run."""


class Engine(Protocol):
    """One model of any kind, stepped by the worker. All methods run on the main thread."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def facts(self) -> ModelFacts:
        """Sent in `Ready`."""

    @property
    def stats(self) -> Stats:
        """Sent every second; the worker adds MLX's memory."""

    @property
    def gather_count(self) -> int:
        """How many messages an idle engine briefly waits for, when concurrent requests are likely; otherwise 0."""

    @property
    def idle_seconds(self) -> float:
        """An engine without work needs a step after this long; infinite for most."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything. The worker steps an engine that has work without pauses."""

    def warm_up(self) -> None:
        """Runs every kind of work once, and leaves no trace of it."""

    def take(self, message: DownMessage) -> None: ...

    def step(self) -> list[UpMessage]: ...

    def limit(self, limits: Limits) -> list[UpMessage]:
        """Applies new memory limits. The worker has set MLX's own limits before."""

    def release_memory(self) -> None: ...

    def close(self, seconds: float) -> None:
        """Saves what outlives the process, for at most `seconds`, and ends the other ranks. Called once, at the end."""


def _generator(launch: Launch) -> Engine:
    from mlx_manager.mlx_server.engine.generator import Generator

    return Generator(launch)


def _rank(launch: Launch, membership: Membership, uplink: "Uplink") -> Engine:
    """The engine of one of several ranks."""
    from mlx_manager.mlx_server.engine.follower import Follower
    from mlx_manager.mlx_server.engine.generator import Generator
    from mlx_manager.mlx_server.engine.rank_facts import compare_ranks

    uplink.send([Joining()])
    uplink.flush()
    ranks = Ranks.join(membership)
    uplink.send([Joining(has_joined=True)])
    compare_ranks(ranks, launch)
    return Generator(launch, ranks) if ranks.rank == 0 else Follower(launch, ranks)


def _encoder(launch: Launch) -> Engine:
    from mlx_manager.mlx_server.engine.encoder import Encoder

    return Encoder(launch)


ENGINES: dict[ModelKind, Callable[[Launch], Engine]] = {
    "generate": _generator,
    "embed": _encoder,
    "rerank": _encoder,
}
"""Constructors that load the model. Each imports the libraries of its kind when it is called."""


def main() -> None:
    try:
        _work()
    except Exception as exc:
        if not is_lost_rank(exc):
            raise
        print(f"The connection to another rank is lost: {exc}", file=sys.stderr, flush=True)
        os._exit(LOST_RANK_STATUS)


def _work() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the API process ends its workers
    received, sent = _take_streams()
    inbox: queue.SimpleQueue[DownMessage] = queue.SimpleQueue()
    threading.Thread(target=_read_messages, args=(received, inbox), daemon=True).start()
    launch = inbox.get()
    if not isinstance(launch, Launch):
        raise SystemExit(f"The API process sent {type(launch).__name__} before Launch.")
    sys.setswitchinterval(SWITCH_SECONDS)
    uplink = Uplink(sent)
    if (mac := macos.this_mac()) is not None:
        mac.prefer_fast_cores()
    device = this_device()
    keep_kernels(device)
    _prepare_device(launch)
    uplink.send([device])
    try:
        engine = _engine(launch, uplink)
        warm_up_seconds = _warm_up(engine, uplink) if launch.options.warm_up else None
    except Exception as exc:  # mlx-lm may raise anything for a model's files
        if is_lost_rank(exc):
            raise
        uplink.send([LoadFailed(f"{type(exc).__name__}: {exc}")])
        uplink.flush()
        raise
    uplink.send([Ready(mx.get_active_memory(), _dtype(engine.model), engine.facts, warm_up_seconds)])
    run(engine, inbox, uplink)


def _engine(launch: Launch, uplink: "Uplink") -> Engine:
    membership = launch.membership
    if membership is None:
        return ENGINES[launch.kind](launch)
    return _rank(msgspec.structs.replace(launch, folder=os.path.expanduser(launch.folder)), membership, uplink)


def _warm_up(engine: Engine, uplink: "Uplink") -> float:
    """Returns its duration in seconds."""
    uplink.send([WarmingUp()])
    began = time.perf_counter()
    try:
        engine.warm_up()
    except Exception as exc:  # a model may raise anything at its first step
        if is_lost_rank(exc):
            raise
        raise WarmUpFailed(f"{type(exc).__name__}: {exc}") from exc
    return time.perf_counter() - began


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """The connection to the API process: the socket on stdin or, with --stdio, the pipes of stdin and stdout.

    Stdin becomes empty for later readers, and what is printed goes to stderr.
    """
    received = os.fdopen(os.dup(0), "rb")
    sent = os.fdopen(os.dup(1 if "--stdio" in sys.argv else 0), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return received, sent


class Uplink:
    """Sends messages to the API on a thread of its own, and a heartbeat every second.

    On the CPU, MLX holds the main thread up for most of a step. This thread sends then, and the API process uses the
    time: so neither delays the next step, which made one stream 17 % faster on two cores.
    """

    def __init__(self, sent: BinaryIO) -> None:
        self._sent = sent
        self._queue: queue.SimpleQueue[list[UpMessage] | threading.Event] = queue.SimpleQueue()
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._send_queued, daemon=True)
        self._thread.start()

    def send(self, messages: list[UpMessage]) -> None:
        self._queue.put(messages)

    def flush(self) -> None:
        """Waits until what is queued has been sent."""
        sent = threading.Event()
        self._queue.put(sent)
        sent.wait(FLUSH_SECONDS)

    def step_begins(self) -> None:
        self._step_began = time.monotonic()

    def step_ended(self) -> None:
        self._step_began = None

    def _send_queued(self) -> None:
        """Runs on its own thread until the API closes the socket."""
        heartbeat_at = time.monotonic()
        with contextlib.suppress(OSError):
            while True:
                messages = self._take(heartbeat_at)
                if isinstance(messages, threading.Event):
                    messages.set()
                    continue
                if time.monotonic() >= heartbeat_at:
                    messages = [*messages, self._heartbeat()]
                    heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
                self._sent.write(encode_up(messages))
                self._sent.flush()

    def _take(self, until: float) -> list[UpMessage] | threading.Event:
        """The next in the queue; no messages if there are none by that time."""
        try:
            return self._queue.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return []

    def _heartbeat(self) -> Heartbeat:
        began = self._step_began
        step_seconds = time.monotonic() - began if began is not None else 0.0
        return Heartbeat(step_seconds, mx.get_active_memory())


def _prepare_device(launch: Launch) -> None:
    """Disables compilation on the CPU: MLX would run the C++ compiler during the first request. Sets memory limits."""
    if not computes_on_gpu():
        mx.disable_compile()
    _set_limits(launch.limits)
    recommended_bytes = mx.device_info().get("max_recommended_working_set_size")
    if launch.options.wire_memory and recommended_bytes is not None:
        mx.set_wired_limit(int(recommended_bytes))


def _set_limits(limits: Limits) -> None:
    """Bounds the memory that MLX allocates and keeps for reuse, in this process only."""
    mx.set_memory_limit(limits.memory_bytes)
    mx.set_cache_limit(limits.buffer_bytes)


def _dtype(model: nn.Module) -> str:
    """The most common floating dtype. Quantised weights are integers, and their scales floats."""
    sizes: dict[mx.Dtype, int] = {}
    for _, weight in tree_flatten(model.parameters()):
        if mx.issubdtype(weight.dtype, mx.floating):
            sizes[weight.dtype] = sizes.get(weight.dtype, 0) + weight.size
    return str(max(sizes, key=sizes.__getitem__, default="")).rpartition(".")[2]


def run(engine: Engine, inbox: "queue.SimpleQueue[DownMessage]", uplink: Uplink) -> None:
    """Steps the engine until a Shutdown. Reads messages between steps, so a cancel waits for one step at most."""
    next_stats = time.monotonic() + HEARTBEAT_SECONDS
    busy_at, is_trimmed = time.monotonic(), False
    while True:
        idle_seconds = 0.0 if engine.has_work else min(engine.idle_seconds, HEARTBEAT_SECONDS)
        messages = _take_messages(inbox, engine.gather_count, idle_seconds)
        uplink.step_begins()
        if messages or engine.has_work:
            busy_at, is_trimmed = time.monotonic(), False
        elif time.monotonic() - busy_at >= RELEASE_SECONDS and mx.get_cache_memory() > 0:
            engine.release_memory()
        elif time.monotonic() - busy_at >= TRIM_SECONDS and not is_trimmed:
            trim_allocator()
            is_trimmed = True
        events: list[UpMessage] = []
        gives_memory_back = False
        for message in messages:
            match message:
                case Limits():
                    _set_limits(message)
                    events += engine.limit(message)
                    gives_memory_back = message.buffer_bytes == 0
                case Shutdown():
                    engine.close(SAVE_SECONDS)
                    return
                case _:
                    engine.take(message)
        events += engine.step()
        if gives_memory_back:
            engine.release_memory()
        if time.monotonic() >= next_stats:
            events.append(_with_memory(engine.stats))
            next_stats = time.monotonic() + HEARTBEAT_SECONDS
        if events:
            uplink.send(events)
        uplink.step_ended()


def _take_messages(
    inbox: "queue.SimpleQueue[DownMessage]", gather_count: int, idle_seconds: float
) -> list[DownMessage]:
    """All queued messages. An idle engine waits up to `idle_seconds` for the first one.

    Then it briefly waits for `gather_count` messages, so that concurrent requests start together.
    """
    messages: list[DownMessage] = []
    try:
        if idle_seconds > 0:
            messages.append(inbox.get(timeout=idle_seconds))
        while idle_seconds > 0 and len(messages) < gather_count:
            messages.append(inbox.get(timeout=GATHER_SECONDS))
        while True:
            messages.append(inbox.get_nowait())
    except queue.Empty:
        return messages


def _with_memory(stats: Stats) -> Stats:
    return msgspec.structs.replace(
        stats,
        active_bytes=mx.get_active_memory(),
        peak_bytes=mx.get_peak_memory(),
        cache_bytes=mx.get_cache_memory(),
    )


def _read_messages(stream: BinaryIO, inbox: "queue.SimpleQueue[DownMessage]") -> None:
    """Runs on the reader thread until the API closes the socket, and then exits the process.

    A frame that cannot be decoded also exits the process, because no later message could be read.
    """
    status = 1
    try:
        while len(length := stream.read(LENGTH_BYTES)) == LENGTH_BYTES:
            inbox.put(decode_down(stream.read(int.from_bytes(length, "big"))))
        status = 0
    except msgspec.MsgspecError as exc:
        print(f"Cannot decode a message from the API process: {exc}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
