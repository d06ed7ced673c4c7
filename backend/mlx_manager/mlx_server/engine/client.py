"""The API's side of a worker process: submits sequences, hands their tokens out, and tells of the worker's death.

Runs on the event loop. One task reads the socket and never waits for a consumer (`sequences.py`).
"""

import asyncio
import contextlib
import contextvars
import itertools
import logging
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import assert_never

import msgspec

from mlx_manager.mlx_server.engine.launch import EngineOptions, Worker, launch_worker
from mlx_manager.mlx_server.engine.messages import (
    LENGTH_BYTES,
    Admitted,
    Cancel,
    Capacity,
    Device,
    DownMessage,
    Heartbeat,
    Limits,
    LoadFailed,
    Logprobs,
    Prefilled,
    PromptLogprobs,
    Ready,
    RequestFailed,
    RequestFinished,
    Shutdown,
    Stats,
    Step,
    Submit,
    UpMessage,
    decode_up,
    encode_down,
)
from mlx_manager.mlx_server.engine.sequences import Score, Sequence, SequenceGroup
from mlx_manager.mlx_server.engine.watchdog import Patience, Watchdog
from mlx_manager.mlx_server.errors import EngineFailed, InvalidRequest, LoadingCrashed, ModelLoadFailed, ServerError

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 5.0
LAST_WORDS_LINES = 20
LAST_WORDS_SECONDS = 1.0
STDERR_BYTES = 2**16


class LoadRaised(Exception):
    """What a worker raised when it loaded its model: the exception's name and message."""


class EngineClient:
    """A worker process with its model loaded. It is killed when it does not answer any more.

    `on_death` is called once, on the loop, when a worker that was loaded ends unasked.
    """

    def __init__(
        self,
        model_id: str,
        worker: Worker,
        limits: Limits,
        patience: Patience,
        on_death: Callable[["EngineClient"], None],
        on_progress: Callable[[int], None],
        on_device: Callable[[Device], None],
    ) -> None:
        self.model_id = model_id
        self.epitaph = f"The worker process of model {model_id!r} has just died."
        """How the worker ended, and its last words, as soon as they are known."""
        self.vocabulary_size = 0
        self.kv_bytes_per_token = 0
        self.stats = Stats()
        self.tokens_per_second = 0.0
        """Generated between the last two Stats."""
        self.limits = limits
        self._capacity = Capacity(0, limits.memory_bytes)
        """As the worker told it last, of the limits that it had then."""
        self._tokens_since_stats = 0
        self._last_stats_at = time.monotonic()
        self._worker = worker
        self._on_death = on_death
        self._on_progress = on_progress
        self._on_device = on_device
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sequences: dict[int, Sequence] = {}
        self._numbers = itertools.count()
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        self._closing = False
        self._gone = False
        self._abandoned: ServerError | None = None
        self._verdict: str | None = None
        self._load_failure: str | None = None
        self._watchdog = Watchdog(patience)
        nobodys = contextvars.Context()  # these outlive the request that has the model loaded, and are no part of it
        self._watching = asyncio.create_task(self._kill_when_it_does_not_answer(), context=nobodys)
        self._reading = asyncio.create_task(self._read_until_death(), context=nobodys)

    @classmethod
    async def launch(
        cls,
        model_id: str,
        model_path: Path,
        options: EngineOptions,
        patience: Patience,
        on_death: Callable[["EngineClient"], None],
        on_progress: Callable[[int], None] = lambda loaded_bytes: None,
        on_device: Callable[[Device], None] = lambda device: None,
    ) -> "EngineClient":
        """Starts a worker and waits until its model is loaded.

        Raises LoadRaised, or ModelLoadFailed with the worker's last words. `on_progress` is told every second how much
        of the model is in memory; `on_device` is told of the worker's device before the model is loaded, and ends the
        load with the ServerError that it raises.
        """
        limits = Limits(options.memory_limit_bytes, options.buffer_limit_bytes, options.prefix_cache_bytes)
        worker = await launch_worker(model_path, options)
        client = cls(model_id, worker, limits, patience, on_death, on_progress, on_device)
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

    @contextlib.asynccontextmanager
    async def generate(self, submissions: list[Submit]) -> AsyncIterator[SequenceGroup]:
        """Yields the sequences, all of them admitted; leaving the block before their end cancels them.

        The submissions get their sequence numbers here. Raises EngineFailed, as the group does, when the engine gives a
        sequence up or the worker dies, and InvalidRequest for a grammar that does not fit the model.
        """
        if self._abandoned is not None:
            raise self._abandoned
        if self._gone:
            raise EngineFailed(self.epitaph)
        numbers = [next(self._numbers) for _ in submissions]
        group = SequenceGroup(len(numbers), lambda index: self._cancel(numbers[index]))
        self._sequences.update(zip(numbers, group.members, strict=True))
        try:
            for number, submission in zip(numbers, submissions, strict=True):
                self._send(msgspec.structs.replace(submission, sequence=number))
            await group.wait_until_admitted()
            yield group
        finally:
            for number in numbers:
                self._cancel(number)

    @property
    def largest_sequence_tokens(self) -> int:
        """Prompt and answer that fit into the worker's memory.

        Until the worker tells its capacity under new limits, a smaller share counts for no more than it surely holds:
        what is submitted meanwhile is checked against it.
        """
        less_bytes = max(0, self._capacity.memory_bytes - self.limits.memory_bytes)
        lost_tokens = -(-less_bytes // self.kv_bytes_per_token) if self.kv_bytes_per_token else 0
        return max(0, self._capacity.largest_sequence_tokens - lost_tokens)

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

    def abandon_sequences(self, failure: ServerError) -> None:
        """Fails all that are running and all to come, for a server that can wait no longer."""
        self._abandoned = failure
        for number, sequence in self._sequences.items():
            sequence.fail(failure)
            self._send(Cancel(number))
        self._sequences.clear()

    async def wait_until_buried(self) -> None:
        """Waits for the end of a worker that is dying, `on_death` included."""
        await asyncio.shield(self._reading)

    def _cancel(self, number: int) -> None:
        if self._sequences.pop(number, None) is not None and self.alive:
            self._send(Cancel(number))

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

    def _dispatch(self, message: UpMessage) -> None:
        sequences = self._sequences
        match message:
            case Step():
                self._tokens_since_stats += len(message.tokens)
                if message.logprobs is not None:
                    self._push_scores(message, message.logprobs)
                for number, token in zip(message.sequences, message.tokens, strict=True):
                    sequence = sequences.get(number)
                    if sequence is not None:  # a cancelled one may have been on its way
                        sequence.push_token(token)
            case RequestFinished():
                if message.sequence in sequences:
                    sequences.pop(message.sequence).finish(message.reason)
            case PromptLogprobs():
                if message.sequence in sequences:
                    for _, score in _scores(message.logprobs):
                        sequences[message.sequence].push_prompt_score(score)
            case Admitted():
                if message.sequence in sequences:
                    sequences[message.sequence].admit()
            case Prefilled():
                if message.sequence in sequences:
                    sequences[message.sequence].prefill(message.cached_tokens, message.queue_seconds)
            case RequestFailed():
                if message.sequence in sequences:
                    sequences.pop(message.sequence).fail(_failure(message))
            case Heartbeat():
                self._watchdog.heard_heartbeat(message.step_seconds)
                if not self._loaded.done():
                    self._on_progress(message.active_bytes)
            case Stats():
                self._measure_rate()
                self.stats = message
            case Device():
                self._note_device(message)
            case Capacity():
                self._capacity = message
            case Ready():
                self.vocabulary_size = message.vocabulary_size
                self._capacity = Capacity(message.largest_sequence_tokens, self._capacity.memory_bytes)
                self.kv_bytes_per_token = message.kv_bytes_per_token
                self.stats = Stats(active_bytes=message.active_bytes, peak_bytes=message.active_bytes)
                if not self._loaded.done():  # nobody waits for it any more
                    self._loaded.set_result(None)
            case LoadFailed(failure):
                self._load_failure = failure
            case _:
                assert_never(message)

    def _note_device(self, device: Device) -> None:
        try:
            self._on_device(device)
        except ServerError as exc:
            if not self._loaded.done():
                self._loaded.set_exception(exc)

    def _measure_rate(self) -> None:
        now = time.monotonic()
        self.tokens_per_second = self._tokens_since_stats / max(now - self._last_stats_at, 1e-3)
        self._tokens_since_stats, self._last_stats_at = 0, now

    def _push_scores(self, step: Step, logprobs: Logprobs) -> None:
        for place, score in _scores(logprobs):
            if step.sequences[place] in self._sequences:
                self._sequences[step.sequences[place]].push_score(score)

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
            logger.error("%s %d requests are lost.", self.epitaph, len(self._sequences))
            self._on_death(self)
        for sequence in self._sequences.values():
            sequence.fail(EngineFailed(f"{self.epitaph} Send the request again: it gets a new worker."))
        self._sequences.clear()


def _failure(message: RequestFailed) -> ServerError:
    if message.invalid:
        return InvalidRequest(message.message)
    return EngineFailed(f"The engine gave the request up: {message.message}")


def _scores(columns: Logprobs) -> Iterator[tuple[int, Score]]:
    """Each place of the columns with its score."""
    scores = map(Score, columns.chosen, columns.top_tokens, columns.top)
    return zip(columns.places, scores, strict=True)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time ones have no names
        return f"signal {number}"
