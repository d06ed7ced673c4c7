"""The API's side of a worker that generates: submits sequences, and dispatches their tokens (`sequences.py`)."""

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator

import msgspec

from mlx_manager.mlx_server.engine.launch import Worker
from mlx_manager.mlx_server.engine.messages import (
    Admitted,
    Cancel,
    Capacity,
    GeneratorFacts,
    Limits,
    Logprobs,
    Prefilled,
    PromptLogprobs,
    Ready,
    RequestFailed,
    RequestFinished,
    Step,
    Submit,
    UpMessage,
)
from mlx_manager.mlx_server.engine.sequences import Score, Sequence, SequenceGroup
from mlx_manager.mlx_server.engine.worker_client import Supervision, WorkerClient, request_failure
from mlx_manager.mlx_server.errors import ServerError


class EngineClient(WorkerClient):
    def __init__(self, model_id: str, worker: Worker, limits: Limits, supervision: Supervision) -> None:
        super().__init__(model_id, worker, limits, supervision)
        self.facts = GeneratorFacts(0, 0, 0)
        self._capacity = Capacity(0, limits.memory_bytes)
        """The last one from the worker, for the limits that it had then."""
        self._sequences: dict[int, Sequence] = {}
        self._numbers = itertools.count()

    @property
    def vocabulary_size(self) -> int:
        return self.facts.vocabulary_size

    @property
    def kv_bytes_per_token(self) -> int:
        return self.facts.kv_bytes_per_token

    @property
    def pending(self) -> int:
        return len(self._sequences)

    @contextlib.asynccontextmanager
    async def generate(self, submissions: list[Submit]) -> AsyncIterator[SequenceGroup]:
        """Yields the sequences once all are admitted. Leaving the block cancels unfinished sequences.

        Assigns the sequence numbers. Raises EngineFailed, as the group does, when the engine aborts a sequence or the
        worker exits, and InvalidRequest for a grammar that the model cannot follow.
        """
        self._check_open()
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
        """The longest sequence, prompt and answer, that fits into the worker's memory.

        After the limits shrink, a lower bound until the worker reports its new capacity, so that the checks of new
        requests are safe.
        """
        less_bytes = max(0, self._capacity.memory_bytes - self.limits.memory_bytes)
        lost_tokens = -(-less_bytes // self.kv_bytes_per_token) if self.kv_bytes_per_token else 0
        return max(0, self._capacity.largest_sequence_tokens - lost_tokens)

    def _fail_all(self, failure: ServerError) -> None:
        for number, sequence in self._sequences.items():
            sequence.fail(failure)
            self._send(Cancel(number))
        self._sequences.clear()

    def _note_ready(self, ready: Ready) -> None:
        assert isinstance(ready.model, GeneratorFacts)
        self.facts = ready.model
        self._capacity = Capacity(self.facts.largest_sequence_tokens, self._capacity.memory_bytes)

    def _cancel(self, number: int) -> None:
        if self._sequences.pop(number, None) is not None and self.alive:
            self._send(Cancel(number))

    def _dispatch(self, message: UpMessage) -> None:
        sequences = self._sequences
        match message:
            case Step():
                self._tokens_since_stats += len(message.tokens)
                if message.logprobs is not None:
                    self._push_scores(message, message.logprobs)
                for number, token in zip(message.sequences, message.tokens, strict=True):
                    sequence = sequences.get(number)
                    if sequence is not None:  # else it was cancelled after the worker sent the message
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
                    sequences[message.sequence].prefill(message)
            case RequestFailed():
                if message.sequence in sequences:
                    sequences.pop(message.sequence).fail(request_failure(message))
            case Capacity():
                self._capacity = message
            case _:
                super()._dispatch(message)

    def _push_scores(self, step: Step, logprobs: Logprobs) -> None:
        for place, score in _scores(logprobs):
            if step.sequences[place] in self._sequences:
                self._sequences[step.sequences[place]].push_score(score)


def _scores(columns: Logprobs) -> Iterator[tuple[int, Score]]:
    """Pairs of place and score."""
    scores = map(Score, columns.chosen, columns.top_tokens, columns.top)
    return zip(columns.places, scores, strict=True)
