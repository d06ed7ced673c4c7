"""The engine core: sequences go in, the tokens of each step come out. An ordinary synchronous object.

It runs in the worker, on one thread, over mlx-lm's BatchGenerator, which decodes all running sequences in one batch and
takes prompts in by chunks between the decode steps. It knows no sockets, no text and no HTTP.
"""

from functools import cache

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, StopSequences

from mlx_manager.mlx_server.engine.messages import Admitted, RequestFailed, RequestFinished, Step, Submit, UpMessage
from mlx_manager.mlx_server.engine.sampling import Guard, MakeDrawing, make_drawing

MAX_BATCH_SIZE = 64
PREFILL_CHUNK_TOKENS = 512
"""The most prompt tokens that a step takes in, and so the longest that a running stream or a cancel waits for one."""


@cache
def _stop_sequences(stop_tokens: tuple[int, ...]) -> StopSequences:
    return StopSequences([(token,) for token in stop_tokens])


class EngineCore:
    """`submit`, `cancel` and `step` in any order, all on the thread that made it; `close` once at the end."""

    def __init__(self, model: nn.Module, make_drawing: MakeDrawing = make_drawing) -> None:
        self.vocabulary_size = _vocabulary_size(model)
        self._make_drawing = make_drawing
        self._generator = BatchGenerator(
            model,
            completion_batch_size=MAX_BATCH_SIZE,
            prefill_batch_size=8,
            prefill_step_size=PREFILL_CHUNK_TOKENS,
        )
        self._sequence_of_uid: dict[int, int] = {}
        self._uid_of_sequence: dict[int, int] = {}
        self._guards: dict[int, Guard] = {}
        self._pending: list[UpMessage] = []

    def __len__(self) -> int:
        """Sequences admitted and not finished."""
        return len(self._uid_of_sequence)

    def submit(self, message: Submit) -> None:
        """Admits the sequence, or refuses it; the next `step` tells which."""
        refusal = self._refusal(message)
        if refusal is not None:
            self._pending.append(RequestFailed(message.sequence, refusal))
            return
        guard = Guard(self._make_drawing(message.sampling, len(message.prompt_tokens)))
        (uid,) = self._generator.insert(
            [message.prompt_tokens],
            max_tokens=[message.max_tokens],
            samplers=[guard.sampler],
            logits_processors=[guard.processors],
            stop_sequences=[_stop_sequences(tuple(message.stop_tokens))],
        )
        self._sequence_of_uid[uid] = message.sequence
        self._uid_of_sequence[message.sequence] = uid
        self._guards[uid] = guard
        self._pending.append(Admitted(message.sequence))

    def cancel(self, sequence: int) -> None:
        uid = self._uid_of_sequence.get(sequence)
        if uid is None:
            return
        self._forget(uid)
        self._generator.remove([uid])
        self._release_memory_when_idle()

    def step(self) -> list[UpMessage]:
        """One decode step for all running sequences and one prefill chunk for those waiting."""
        events, self._pending = self._pending, []
        if self._uid_of_sequence:
            events += self._decode()
            events += self._fail_the_guilty()
            self._release_memory_when_idle()  # here, where the finished rows' caches are out of scope
        return events

    def close(self) -> None:
        self._generator.close()

    def _decode(self) -> list[UpMessage]:
        _, responses = self._generator.next()
        if not responses:
            return []
        finished: list[UpMessage] = []
        sequences: list[int] = []
        tokens: list[int] = []
        for response in responses:
            sequence = self._sequence_of_uid[response.uid]
            sequences.append(sequence)
            tokens.append(response.token)
            if response.finish_reason is not None:
                finished.append(RequestFinished(sequence, response.finish_reason))
                self._forget(response.uid)
        return [Step(sequences, tokens), *finished]

    def _fail_the_guilty(self) -> list[UpMessage]:
        """Removes the sequences whose sampler or processors raised; what they drew since was never sent."""
        events: list[UpMessage] = []
        for uid, guard in list(self._guards.items()):
            if guard.failure is not None:
                events.append(RequestFailed(self._sequence_of_uid[uid], f"sampling failed: {guard.failure!r}"))
                self._forget(uid)
                self._generator.remove([uid])
        return events

    def _forget(self, uid: int) -> None:
        del self._uid_of_sequence[self._sequence_of_uid.pop(uid)], self._guards[uid]

    def _release_memory_when_idle(self) -> None:
        if not self._uid_of_sequence:
            mx.synchronize(self._generator.stream)  # the step that was launched ahead holds buffers too
            mx.clear_cache()

    def _refusal(self, message: Submit) -> str | None:
        """Why the sequence must not reach MLX, where an index beyond the vocabulary is not checked again."""
        if not message.prompt_tokens:
            return "the prompt has no tokens"
        if max(message.prompt_tokens) >= self.vocabulary_size or min(message.prompt_tokens) < 0:
            return f"the prompt has token ids outside of the model's vocabulary of {self.vocabulary_size}"
        if message.max_tokens < 1:
            return f"max_tokens is {message.max_tokens}"
        return None


def _vocabulary_size(model: nn.Module) -> int:
    """Rows of the logits, read from a forward pass of one token, which warms the model up as well."""
    logits = model(mx.array([[0]]))
    mx.eval(logits)
    return int(logits.shape[-1])
