"""The API's side of a worker process of any kind: launch, heartbeats, statistics and exit.

Runs on the event loop. One task reads the socket and never waits for a consumer. Knows no generation and no embedding.
"""

import asyncio
import contextlib
import contextvars
import logging
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from mlx_manager.mlx_server.engine.launch import Worker, launch_worker
from mlx_manager.mlx_server.engine.messages import (
    LENGTH_BYTES,
    SAVE_SECONDS,
    Device,
    DownMessage,
    Heartbeat,
    Joining,
    Launch,
    Limits,
    LoadFailed,
    Ready,
    RequestFailed,
    Shutdown,
    Stats,
    UpMessage,
    WarmingUp,
    decode_up,
    encode_down,
)
from mlx_manager.mlx_server.engine.watchdog import Watchdog, WatchdogLimits
from mlx_manager.mlx_server.errors import EngineFailed, InvalidRequest, LoadingCrashed, ModelLoadFailed, ServerError

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 5.0
STDERR_TAIL_LINES = 20
STDERR_TAIL_SECONDS = 1.0
STDERR_BYTES = 2**16
_OUT_OF_MEMORY = (
    ", as systems do without a message when memory runs out (to prevent it, lower MLX_SERVER_MAX_MEMORY_GB or use a "
    "smaller model)"
)
_RETRY = "Send the request again: the server starts a new worker."


class LoadRaised(Exception):
    """The worker raised an exception while it loaded its model; the message has the exception's name and text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """The callbacks of a worker's client, called on the event loop, and the limits of its watchdog.

    The client calls `on_death` once, when a loaded worker exits unexpectedly; `on_progress` every second, with the
    bytes of the model in memory; `on_device` before the model is loaded: its ServerError aborts the load; `on_warm_up`
    when it is loaded. `is_generating` says whether any model generates now.
    """

    watchdog: WatchdogLimits
    on_death: "Callable[[WorkerClient], None]"
    on_progress: Callable[[int], None]
    on_device: Callable[[Device], None]
    on_warm_up: Callable[[], None]
    is_generating: Callable[[], bool]


class WorkerClient(ABC):
    """A worker process with its model loaded. The client kills a worker that stops responding.

    A subclass for each kind of worker adds the requests, and handles their messages in `_dispatch`.
    """

    def __init__(self, model_id: str, worker: Worker, limits: Limits, supervision: Supervision) -> None:
        self.model_id = model_id
        self.name = f"The worker process of model {model_id!r}"
        """The subject of messages about the worker."""
        self.exit_reason = f"{self.name} has exited."
        """How the worker exited, and the last line of its stderr, once both are known."""
        self.stats = Stats()
        self.tokens_per_second = 0.0
        """Measured between the last two Stats."""
        self.limits = limits
        self._save_seconds = 0.0
        """How long the worker may save its prefix cache after a Shutdown."""
        self.device: Device | None = None
        self.dtype = ""
        self._tokens_since_stats = 0
        self._last_stats_at = time.monotonic()
        self._worker = worker
        self._supervision = supervision
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stderr_tail: deque[str] = deque(maxlen=STDERR_TAIL_LINES)
        self._closing = False
        self._exited = False
        self._abandoned: ServerError | None = None
        self._kill_reason: str | None = None
        self._load_failure: str | None = None
        self._watchdog = Watchdog(supervision.watchdog)
        detached = contextvars.Context()  # the tasks outlive the request that loads the model
        self._watching = asyncio.create_task(self._kill_when_unresponsive(), context=detached)
        self._reading = asyncio.create_task(self._read_until_death(), context=detached)

    @classmethod
    async def launch(cls, model_id: str, launch: Launch, supervision: Supervision) -> Self:
        """Starts a worker and waits until its model is loaded.

        Raises LoadRaised, ModelLoadFailed with the last line of the worker's stderr, or what `on_device` raises.
        """
        client = cls(model_id, await launch_worker(launch), launch.limits, supervision)
        client._save_seconds = SAVE_SECONDS if launch.options.prefix_disk_bytes > 0 and launch.prefix_disk else 0.0
        try:
            await client._loaded
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def alive(self) -> bool:
        return not self._exited and not self._closing

    @property
    def fault(self) -> str | None:
        """Why the worker is not responding; None while it responds."""
        if self._exited:
            return self.exit_reason
        fault = self._watchdog.fault
        return f"{self.name} {fault}." if fault is not None else None

    @property
    def rank_stats(self) -> dict[int, Stats]:
        """The statistics of each rank, for a model over several ranks."""
        return {}

    @property
    def pid(self) -> int:
        return self._worker.process.pid

    def limit(self, limits: Limits) -> None:
        """Changes the worker's memory limits."""
        if limits != self.limits:
            self.limits = limits
            self._send(limits)

    async def close(self) -> None:
        """Ends the worker: kills it while it is loading, else sends Shutdown and kills it after a timeout."""
        if not self._loaded.done() or self._loaded.cancelled() or self._loaded.exception() is not None:
            self._kill()
        elif self.alive:
            self._send(Shutdown())
        self._closing = True
        try:
            async with asyncio.timeout(SHUTDOWN_SECONDS + self._save_seconds):
                await asyncio.shield(self._reading)
        except TimeoutError:
            self._kill()
            await self._reading

    def abandon(self, failure: ServerError) -> None:
        """Fails all pending and future requests to the worker."""
        self._abandoned = failure
        self._fail_all(failure)

    async def wait_until_exited(self) -> None:
        """Waits until the worker has exited and `on_death` has been called."""
        await asyncio.shield(self._reading)

    @property
    @abstractmethod
    def pending(self) -> int:
        """Requests to the worker that have not finished."""

    @abstractmethod
    def _fail_all(self, failure: ServerError) -> None:
        """Fails all pending requests, and cancels them in a worker that is alive."""

    @abstractmethod
    def _note_ready(self, ready: Ready) -> None:
        """Records the facts of the loaded model."""

    def _dispatch(self, message: UpMessage) -> None:
        match message:
            case Heartbeat():
                self._watchdog.note_heartbeat(message.step_seconds)
                if not self._loaded.done():
                    self._supervision.on_progress(message.active_bytes)
            case Stats():
                self._measure_rate()
                if message.disk_fault and not self.stats.disk_fault:
                    logger.warning(
                        "The prefix cache of %s stopped using the disk: %s.", self.model_id, message.disk_fault
                    )
                self.stats = message
            case Joining():
                self._watchdog.expects_silence = not message.has_joined
            case Device():
                self._note_device(message)
            case WarmingUp():
                self._supervision.on_warm_up()
            case Ready():
                if message.warm_up_seconds is not None:
                    logger.info("Model %s warmed up in %.2f s", self.model_id, message.warm_up_seconds)
                self.dtype = message.dtype
                self.stats = Stats(active_bytes=message.active_bytes, peak_bytes=message.active_bytes)
                self._note_ready(message)
                if not self._loaded.done():  # else the launch was cancelled
                    self._loaded.set_result(None)
            case LoadFailed(failure):
                self._load_failure = failure
            case _:
                raise TypeError(f"unexpected message of this kind of worker: {type(message).__name__}")

    def _check_open(self) -> None:
        """Raises if the worker accepts no more requests."""
        if self._abandoned is not None:
            raise self._abandoned
        if self._exited:
            raise EngineFailed(f"{self.exit_reason} {_RETRY}")

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._worker.process.kill()

    async def _kill_when_unresponsive(self) -> None:
        self._kill_reason = f"{await self._watchdog.wait_until_unresponsive()} and was killed"
        logger.error("Worker %d of %s %s", self.pid, self.model_id, self._kill_reason)
        self._kill()

    def _send(self, message: DownMessage) -> None:
        """Writes to the worker unless it has exited; then `_read_until_death` fails the pending requests."""
        if not self._exited and not self._worker.writer.is_closing():  # uvloop raises for a closed socket
            self._worker.writer.write(encode_down(message))

    async def _read_until_death(self) -> None:
        """The reader task: dispatches messages until the worker exits, then fails the pending requests."""
        stderr = asyncio.create_task(self._read_stderr())
        try:
            await self._read_messages()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the worker has exited
        except Exception:
            logger.exception("Worker %d of %s sent an invalid message. Killing it.", self.pid, self.model_id)
            self._kill_reason = "sent an invalid message and was killed"
            self._kill()
        self._exited = True
        self._watching.cancel()
        self._worker.writer.close()
        status = await self._wait_for_exit()
        await asyncio.wait({stderr}, timeout=STDERR_TAIL_SECONDS)
        self._report_exit(status)

    async def _read_messages(self) -> None:
        reader = self._worker.reader
        while True:
            length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
            messages = decode_up(await reader.readexactly(length))
            self._watchdog.note_message()
            for message in messages:
                self._dispatch(message)

    async def _wait_for_exit(self) -> int:
        """The exit status of a worker that has closed its socket. Kills a worker that keeps running."""
        try:
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                return await self._worker.process.wait()
        except TimeoutError:
            self._kill_reason = self._kill_reason or "closed its connection and was killed"
            self._kill()
            return await self._worker.process.wait()

    def _note_device(self, device: Device) -> None:
        self.device = device
        try:
            self._supervision.on_device(device)
        except ServerError as exc:
            if not self._loaded.done():
                self._loaded.set_exception(exc)

    def _measure_rate(self) -> None:
        now = time.monotonic()
        self.tokens_per_second = self._tokens_since_stats / max(now - self._last_stats_at, 1e-3)
        self._tokens_since_stats, self._last_stats_at = 0, now

    async def _read_stderr(self) -> None:
        stderr = self._worker.process.stderr
        assert stderr is not None
        line = b""
        while data := await stderr.read(STDERR_BYTES):
            *lines, line = (line + data).split(b"\n")
            line = line[-STDERR_BYTES:]
            for text in (raw.decode("utf-8", "replace").rstrip() for raw in lines):
                self._stderr_tail.append(text)
                logger.info("Worker %d of %s: %s", self.pid, self.model_id, text)

    def _report_exit(self, status: int) -> None:
        self.exit_reason = self._describe_exit(status)
        if not self._loaded.done():
            kind = LoadingCrashed if status < 0 else ModelLoadFailed
            failure = kind(f"Model {self.model_id!r} cannot be loaded. {self.exit_reason} Check the server's log.")
            self._loaded.set_exception(LoadRaised(self._load_failure) if self._load_failure is not None else failure)
        elif not self._closing:
            logger.error("%s %d pending requests failed.", self.exit_reason, self.pending)
            self._supervision.on_death(self)
        self._fail_all(EngineFailed(f"{self.exit_reason} {_RETRY}"))

    def _describe_exit(self, status: int) -> str:
        last_line = f": {self._stderr_tail[-1]}" if self._stderr_tail else ""
        return f"{self.name} {self._kill_reason or self._ending(status)}{last_line}."

    def _ending(self, status: int) -> str:
        if status >= 0:
            return f"exited with status {status}"
        ending = f"was killed by {_signal_name(-status)}"
        return ending + _OUT_OF_MEMORY if -status == signal.SIGKILL else ending


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def request_failure(message: RequestFailed) -> ServerError:
    if message.invalid:
        return InvalidRequest(message.message)
    return EngineFailed(
        f"The engine aborted the request: {message.message.rstrip('.')}. Retry it with other parameters, or use "
        "another model."
    )
