"""The API's side of a worker that embeds or scores: sends texts, and collects their vectors."""

import asyncio
import itertools
from array import array
from collections.abc import Sequence

from mlx_manager.mlx_server.engine.launch import Worker
from mlx_manager.mlx_server.engine.messages import (
    Cancel,
    Encode,
    Encoded,
    EncoderFacts,
    Limits,
    Neighbours,
    Ready,
    RequestFailed,
    UpMessage,
)
from mlx_manager.mlx_server.engine.worker_client import Supervision, WorkerClient, request_failure
from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.records import GenerationRecord

FLOAT_BYTES = 4


class EncoderClient(WorkerClient):
    def __init__(self, model_id: str, worker: Worker, limits: Limits, supervision: Supervision) -> None:
        super().__init__(model_id, worker, limits, supervision)
        self.facts = EncoderFacts(0, 0)
        self._requests: dict[int, _Request] = {}
        self._numbers = itertools.count()
        self._neighbours = Neighbours(generating=False)

    @property
    def pending(self) -> int:
        return len(self._requests)

    async def encode(
        self,
        texts: Sequence[Sequence[int]],
        record: GenerationRecord,
        *,
        second_at: list[int] | None = None,
        dimensions: int | None = None,
    ) -> bytes:
        """The vectors or scores of texts in token ids, concatenated, as float32. Cancelled with its caller.

        Raises EngineFailed when the worker exits or aborts the request.
        """
        self._check_open()
        number, dimensions = next(self._numbers), dimensions if dimensions is not None else self.facts.dimensions
        tokens = array("i")
        for text in texts:
            tokens.extend(text)
        lengths = [len(text) for text in texts]
        request = self._requests[number] = _Request(lengths, dimensions * FLOAT_BYTES, record)
        try:
            self._send_neighbours()
            self._send(Encode(number, lengths, tokens.tobytes(), second_at or [], dimensions))
            return await request.vectors
        finally:
            if self._requests.pop(number, None) is not None and self.alive:
                self._send(Cancel(number))

    def _send_neighbours(self) -> None:
        neighbours = Neighbours(self._supervision.is_generating())
        if neighbours != self._neighbours:
            self._neighbours = neighbours
            self._send(neighbours)

    def _fail_all(self, failure: ServerError) -> None:
        for number, request in self._requests.items():
            request.fail(failure)
            self._send(Cancel(number))
        self._requests.clear()

    def _note_ready(self, ready: Ready) -> None:
        assert isinstance(ready.model, EncoderFacts)
        self.facts = ready.model

    def _dispatch(self, message: UpMessage) -> None:
        match message:
            case Encoded():
                self._send_neighbours()
                request = self._requests.get(message.sequence)
                if request is not None:  # else it was cancelled after the worker sent the message
                    self._tokens_since_stats += request.collect(message)
                    if request.vectors.done():
                        del self._requests[message.sequence]
            case RequestFailed():
                if message.sequence in self._requests:
                    self._requests.pop(message.sequence).fail(request_failure(message))
            case _:
                super()._dispatch(message)


class _Request:
    """Collects the vectors of one request."""

    def __init__(self, lengths: list[int], row_bytes: int, record: GenerationRecord) -> None:
        self.vectors: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._lengths = lengths
        self._row_bytes = row_bytes
        self._vectors = bytearray(row_bytes * len(lengths))
        self._missing = len(lengths)
        self._record = record

    def collect(self, message: Encoded) -> int:
        """Returns the number of encoded tokens."""
        size, rows = self._row_bytes, memoryview(message.vectors)
        for row, place in enumerate(message.places):
            self._vectors[place * size : (place + 1) * size] = rows[row * size : (row + 1) * size]
        self._missing -= len(message.places)
        if message.queue_seconds:
            self._record.queue_seconds = message.queue_seconds
        if not self._missing and not self.vectors.done():
            self.vectors.set_result(bytes(self._vectors))
        return sum(self._lengths[place] for place in message.places)

    def fail(self, failure: ServerError) -> None:
        if not self.vectors.done():
            self.vectors.set_exception(failure)
