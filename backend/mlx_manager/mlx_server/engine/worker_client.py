"""The API's side of a worker process of any kind: its launch, its heartbeat, its figures, and its death.

Runs on the event loop. One task reads the socket and never waits for a consumer.
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
    Device,
    DownMessage,
    Heartbeat,
    Launch,
    Limits,
    LoadFailed,
    Ready,
    RequestFailed,
    Shutdown,
    Stats,
    UpMessage,
    decode_up,
    encode_down,
)
from mlx_manager.mlx_server.engine.watchdog import Patience, Watchdog
from mlx_manager.mlx_server.errors import EngineFailed, InvalidRequest, LoadingCrashed, ModelLoadFailed, ServerError

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 5.0
LAST_WORDS_LINES = 20
LAST_WORDS_SECONDS = 1.0
STDERR_BYTES = 2**16


class LoadRaised(Exception):
    """What a worker raised when it loaded its model: the exception's name and message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """Who is told of a worker, on the loop, and how long it may say nothing.

    `on_death` is called once, when a worker that was loaded ends unasked; `on_progress` every second, with the bytes of
    the model that are in memory; `on_device` before the model is loaded: a ServerError that it raises ends the load.
    """

    patience: Patience
    on_death: "Callable[[WorkerClient], None]"
    on_progress: Callable[[int], None]
    on_device: Callable[[Device], None]


class WorkerClient(ABC):
    """A worker process with its model loaded. It is killed when it does not answer any more.

    The client of a kind of worker adds what is asked of it, and handles its own messages in `_dispatch`.
    """

    def __init__(self, model_id: str, worker: Worker, limits: Limits, supervision: Supervision) -> None:
        self.model_id = model_id
        self.epitaph = f"The worker process of model {model_id!r} has just died."
        """How the worker ended, and its last words, as soon as they are known."""
        self.stats = Stats()
        self.tokens_per_second = 0.0
        """Between the last two Stats."""
        self.limits = limits
        self.device: Device | None = None
        self.dtype = ""
        self._tokens_since_stats = 0
        self._last_stats_at = time.monotonic()
        self._worker = worker
        self._supervision = supervision
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        self._closing = False
        self._gone = False
        self._abandoned: ServerError | None = None
        self._verdict: str | None = None
        self._load_failure: str | None = None
        self._watchdog = Watchdog(supervision.patience)
        nobodys = contextvars.Context()  # these outlive the request that has the model loaded, and are no part of it
        self._watching = asyncio.create_task(self._kill_when_it_does_not_answer(), context=nobodys)
        self._reading = asyncio.create_task(self._read_until_death(), context=nobodys)

    @classmethod
    async def launch(cls, model_id: str, launch: Launch, supervision: Supervision) -> Self:
        """Starts a worker and waits until its model is loaded.

        Raises LoadRaised, ModelLoadFailed with the worker's last words, or what `on_device` raises.
        """
        client = cls(model_id, await launch_worker(launch), launch.limits, supervision)
        try:
            await client._loaded
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def alive(self) -> bool:
        return not self._gone and not self._closing

    @property
    def complaint(self) -> str | None:
        """Why the worker cannot be counted on at this moment; None when it can."""
        if self._gone:
            return self.epitaph
        complaint = self._watchdog.complaint
        return f"The worker process of model {self.model_id!r} {complaint}." if complaint is not None else None

    @property
    def pid(self) -> int:
        return self._worker.process.pid

    def limit(self, limits: Limits) -> None:
        """Changes the worker's share of the machine."""
        if limits != self.limits:
            self.limits = limits
            self._send(limits)

    async def close(self) -> None:
        """Ends the worker: asks one that is up, which is killed when it does not listen, and kills one that loads."""
        if not self._loaded.done() or self._loaded.cancelled() or self._loaded.exception() is not None:
            self._kill()
        elif self.alive:
            self._send(Shutdown())
        self._closing = True
        try:
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                await asyncio.shield(self._reading)
        except TimeoutError:
            self._kill()
            await self._reading

    def abandon(self, failure: ServerError) -> None:
        """Fails all that is asked of the worker and all to come, for a server that can wait no longer."""
        self._abandoned = failure
        self._fail_all(failure)

    async def wait_until_buried(self) -> None:
        """Waits for the end of a worker that is dying, `on_death` included."""
        await asyncio.shield(self._reading)

    @property
    @abstractmethod
    def pending(self) -> int:
        """What is asked of the worker and not answered yet."""

    @abstractmethod
    def _fail_all(self, failure: ServerError) -> None:
        """Ends all that is pending; a worker that is alive is told to stop with it."""

    @abstractmethod
    def _learn(self, ready: Ready) -> None:
        """The model is loaded."""

    def _dispatch(self, message: UpMessage) -> None:
        match message:
            case Heartbeat():
                self._watchdog.heard_heartbeat(message.step_seconds)
                if not self._loaded.done():
                    self._supervision.on_progress(message.active_bytes)
            case Stats():
                self._measure_rate()
                self.stats = message
            case Device():
                self._note_device(message)
            case Ready():
                self.dtype = message.dtype
                self.stats = Stats(active_bytes=message.active_bytes, peak_bytes=message.active_bytes)
                self._learn(message)
                if not self._loaded.done():  # nobody waits for it any more
                    self._loaded.set_result(None)
            case LoadFailed(failure):
                self._load_failure = failure
            case _:
                raise TypeError(f"a worker of another kind sends {type(message).__name__}")

    def _check_open(self) -> None:
        """Raises the reason why nothing can be asked of the worker any more."""
        if self._abandoned is not None:
            raise self._abandoned
        if self._gone:
            raise EngineFailed(self.epitaph)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._worker.process.kill()

    async def _kill_when_it_does_not_answer(self) -> None:
        self._verdict = f"{await self._watchdog.lose_patience()} and was killed"
        logger.error("Worker %d of %s %s", self.pid, self.model_id, self._verdict)
        self._kill()

    def _send(self, message: DownMessage) -> None:
        """To a worker that is there; of one that has just died, the reader tells everybody in a moment."""
        if not self._gone and not self._worker.writer.is_closing():  # uvloop raises for a closed socket
            self._worker.writer.write(encode_down(message))

    async def _read_until_death(self) -> None:
        """The reader task: dispatches what the worker says until it ends, then tells everybody who waits."""
        stderr = asyncio.create_task(self._read_stderr())
        try:
            await self._read_messages()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the worker is gone
        except Exception:
            logger.exception("Worker %d of %s does not make sense", self.pid, self.model_id)
            self._kill()
        self._gone = True
        self._watching.cancel()
        self._worker.writer.close()
        status = await self._wait_for_exit()
        await asyncio.wait({stderr}, timeout=LAST_WORDS_SECONDS)
        self._bury(status)

    async def _read_messages(self) -> None:
        reader = self._worker.reader
        while True:
            length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
            messages = decode_up(await reader.readexactly(length))
            self._watchdog.heard()
            for message in messages:
                self._dispatch(message)

    async def _wait_for_exit(self) -> int:
        """The exit status of a worker that has closed its socket, killed if it goes on without one."""
        try:
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                return await self._worker.process.wait()
        except TimeoutError:
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
                self._last_words.append(text)
                logger.info("Worker %d of %s: %s", self.pid, self.model_id, text)

    def _bury(self, status: int) -> None:
        ending = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        last_words = f": {self._last_words[-1]}" if self._last_words else ""
        self.epitaph = f"The worker process of model {self.model_id!r} {self._verdict or ending}{last_words}."
        if not self._loaded.done():
            kind = LoadingCrashed if status < 0 else ModelLoadFailed
            failure = kind(f"Model {self.model_id!r} cannot be loaded. {self.epitaph}")
            self._loaded.set_exception(LoadRaised(self._load_failure) if self._load_failure is not None else failure)
        elif not self._closing:
            logger.error("%s %d requests are lost.", self.epitaph, self.pending)
            self._supervision.on_death(self)
        self._fail_all(EngineFailed(f"{self.epitaph} Send the request again: it gets a new worker."))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time ones have no names
        return f"signal {number}"


def request_failure(message: RequestFailed) -> ServerError:
    if message.invalid:
        return InvalidRequest(message.message)
    return EngineFailed(f"The engine gave the request up: {message.message}")
