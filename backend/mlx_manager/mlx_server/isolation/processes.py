"""Starts isolated processes on demand, sends them requests over sockets, and kills them when they do not answer."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import mlx_manager
from mlx_manager.mlx_server.isolation.answering import LENGTH_BYTES, OUT_OF_MEMORY

T = TypeVar("T")
FailureCause = Literal["time", "memory", "size", "crash"]

MAX_THREADS = 64
IDLE_WAIT_SECONDS = 0.1
"""About the time to start a process. Most answers take less."""
_ENVIRONMENT = (
    *("PATH", "HOME", "TZ", "LANG", "LC_", "PYTHON", "LD_", "DYLD_", "VIRTUAL_ENV"),
    *("HF_HOME", "HF_MODULES_CACHE", "XDG_CACHE_HOME", "PYDANTIC_DISABLE_PLUGINS"),
)
"""Prefixes of the environment variables that a process gets. They exclude all of the server's keys."""


class ProcessFailed(Exception):
    """The process did not answer. `cause` is the limit that it exceeded, or "crash"."""

    def __init__(self, cause: FailureCause) -> None:
        super().__init__(cause)
        self.cause = cause


class ProcessPool:
    """Processes that run `module`, one for each concurrent question. At most `max_idle` idle processes stay.

    An answer may take `answer_seconds` of wall-clock time. Processes limit their CPU time themselves.
    """

    def __init__(self, module: str, *, max_idle: int, answer_seconds: float, max_answer_bytes: int) -> None:
        self._module = module
        self._max_idle = max_idle
        self._answer_seconds = answer_seconds
        self._max_answer_bytes = max_answer_bytes
        self._freed = threading.Condition()
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._closed = False
        self._threads = ThreadPoolExecutor(MAX_THREADS, f"asks-{module.rpartition('.')[2]}")

    def ask(self, question: bytes) -> bytes:
        """Returns the answer. Blocks; thread-safe. Raises ProcessFailed."""
        return self._ask(self._take(), question)

    async def answer(self, question: bytes) -> bytes:
        """Like `ask`, from the event loop. Cancelling the caller kills the process."""
        taken: list[_Process] = []
        is_cancelled = threading.Event()

        def ask() -> bytes:
            taken.append(self._take())
            if is_cancelled.is_set():
                taken[0].kill()
            return self._ask(taken[0], question)

        asking = asyncio.ensure_future(self.in_thread(ask))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            is_cancelled.set()
            for process in taken:
                process.kill()
            await asyncio.gather(asking, return_exceptions=True)
            raise

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs `work`, which may ask, in a thread. A cancelled caller still waits for the thread to end."""
        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.gather(working, return_exceptions=True)
            raise

    def close(self) -> None:
        """Ends all processes, busy ones included."""
        with self._freed:
            self._closed = True
            processes = [*self._idle, *self._busy]
            self._idle.clear()
        for process in processes:
            process.end()
        self._threads.shutdown()

    def _take(self) -> "_Process":
        """An idle process, or a new one if none becomes idle in time. Blocks."""
        with self._freed:
            if self._busy:
                self._freed.wait_for(lambda: self._idle or self._closed, IDLE_WAIT_SECONDS)
            process = next(self._alive_idle(), None)
        if process is None:
            process = _Process(self._module)  # takes milliseconds, too long to hold the lock
        with self._freed:
            is_closed = self._closed
            self._busy.add(process)
        if is_closed:
            self._give_back(process, is_healthy=False)
            raise ProcessFailed("crash")
        return process

    def _alive_idle(self) -> Iterator["_Process"]:
        """Takes out idle processes and discards dead ones, which the system may have killed."""
        while self._idle:
            process = self._idle.pop()
            if process.is_alive():
                yield process
            else:
                process.end()

    def _ask(self, process: "_Process", question: bytes) -> bytes:
        is_healthy = False
        try:
            answer = process.ask(question, self._answer_seconds, self._max_answer_bytes)
            is_healthy = True
        finally:
            self._give_back(process, is_healthy)
        return answer

    def _give_back(self, process: "_Process", is_healthy: bool) -> None:
        with self._freed:
            self._busy.discard(process)
            stays = is_healthy and not self._closed and len(self._idle) < self._max_idle
            if stays:
                self._idle.append(process)
                self._freed.notify()
        if not stays:
            process.end()


class _Process:
    """One process, in its own session, so that Ctrl-C in a terminal does not reach it.

    It ends when its socket closes, also after the server was killed.
    """

    def __init__(self, module: str) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                (sys.executable, "-m", module),
                env=_environment(),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()

    def ask(self, question: bytes, seconds: float, max_answer_bytes: int) -> bytes:
        """Returns the answer. Raises ProcessFailed; then the caller must end the process."""
        deadline = time.monotonic() + seconds
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(len(question).to_bytes(LENGTH_BYTES, "big") + question)
            length = int.from_bytes(self._receive(LENGTH_BYTES, deadline), "big")
            if length > max_answer_bytes:
                raise ProcessFailed("size")
            return self._receive(length, deadline)
        except TimeoutError as exc:
            raise ProcessFailed("time") from exc
        except (OSError, EOFError) as exc:
            raise ProcessFailed(self._exit_cause()) from exc

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _receive(self, length: int, deadline: float) -> bytes:
        answer = bytearray(length)
        received, view = 0, memoryview(answer)
        while received < length:
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            count = self._socket.recv_into(view[received:])
            if count == 0:
                raise EOFError
            received += count
        return bytes(answer)

    def _exit_cause(self) -> FailureCause:
        """Why a process closed its socket, which it does only by ending."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(1)
            causes: dict[int, FailureCause] = {-signal.SIGPROF: "time", OUT_OF_MEMORY: "memory"}
            return causes.get(status, "crash")
        return "crash"


def _environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
    package = str(Path(mlx_manager.__file__).parent.parent)
    return own | {"PYTHONPATH": os.pathsep.join([package, *filter(None, [own.get("PYTHONPATH")])])}
