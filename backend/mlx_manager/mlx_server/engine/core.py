"""The engine core: sequences go in, the tokens of each step come out. An ordinary synchronous object.

It runs in the worker, on one thread. A step decodes all running sequences once (`batch.py`) and takes in a chunk of the
waiting prompts (`prefill.py`). It knows no sockets, no text and no HTTP.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.batch import DecodeBatch, Row
from mlx_manager.mlx_server.engine.messages import Admitted, RequestFailed, RequestFinished, Step, Submit, UpMessage
from mlx_manager.mlx_server.engine.prefill import PrefillQueue
from mlx_manager.mlx_server.engine.sampling import Guard, MakeProcessors, make_processors

MAX_BATCH_ROWS = 64


class EngineCore:
    """`submit`, `cancel` and `step` in any order, all on the thread that made it."""

    def __init__(self, model: nn.Module, make_processors: MakeProcessors = make_processors) -> None:
        _check_batchable(model)
        self.vocabulary_size = _vocabulary_size(model)
        self._make_processors = make_processors
        self._batch = DecodeBatch(model)
        self._prefill = PrefillQueue(model)
        self._rows: dict[int, Row] = {}
        self._pending: list[UpMessage] = []

    def __len__(self) -> int:
        """Sequences admitted and not finished."""
        return len(self._rows)

    def submit(self, message: Submit) -> None:
        """Admits the sequence, or refuses it; the next `step` tells which."""
        refusal = self._refusal(message)
        if refusal is not None:
            self._pending.append(RequestFailed(message.sequence, refusal))
            return
        row = Row(
            sequence=message.sequence,
            prompt=message.prompt_tokens,
            max_tokens=message.max_tokens,
            stop_tokens=frozenset(message.stop_tokens),
            sampling=message.sampling,
            guard=Guard(self._make_processors(message.sampling, len(message.prompt_tokens))),
        )
        self._rows[row.sequence] = row
        self._prefill.add(row)
        self._pending.append(Admitted(row.sequence))

    def cancel(self, sequence: int) -> None:
        row = self._rows.get(sequence)
        if row is not None:
            self._drop([row])
            self._release_memory_when_idle()

    def step(self) -> list[UpMessage]:
        """One decode step for all running sequences, and one chunk of the prompts that wait."""
        events, self._pending = self._pending, []
        if self._batch:
            events += self._decode()
        room = MAX_BATCH_ROWS - len(self._batch)
        if self._prefill and room > 0:
            ready = self._prefill.step(room)
            if ready is not None:
                self._batch.join(ready.rows, ready.cache)
        return events

    def _decode(self) -> list[UpMessage]:
        drawn = self._batch.step()
        ended: list[UpMessage] = []
        done: list[Row] = []
        for row, token in drawn:
            reason = row.finish_reason(token)
            if reason is not None:
                done.append(row)
                ended.append(RequestFinished(row.sequence, reason))
        guilty = [row for row in self._batch.rows if row.guard.failure is not None and row not in done]
        ended += [RequestFailed(row.sequence, f"sampling failed: {row.guard.failure!r}") for row in guilty]
        if done or guilty:
            self._drop(done + guilty)
            self._release_memory_when_idle()
        if not drawn:
            return ended
        return [Step([row.sequence for row, _ in drawn], [token for _, token in drawn]), *ended]

    def _drop(self, rows: list[Row]) -> None:
        for row in rows:
            del self._rows[row.sequence]
            self._prefill.remove(row)
        self._batch.remove(rows)

    def _release_memory_when_idle(self) -> None:
        if not self._rows:
            mx.synchronize()  # the step that was launched ahead holds buffers too
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


def _check_batchable(model: nn.Module) -> None:
    kinds = {type(cache).__name__ for cache in make_prompt_cache(model) if not hasattr(cache, "merge")}
    if kinds:
        raise ValueError(f"this architecture cannot be batched: mlx-lm cannot merge its {', '.join(sorted(kinds))}")


def _vocabulary_size(model: nn.Module) -> int:
    """Rows of the logits, read from a forward pass of one token, which warms the model up as well."""
    logits = model(mx.array([[0]]))
    mx.eval(logits)
    return int(logits.shape[-1])
