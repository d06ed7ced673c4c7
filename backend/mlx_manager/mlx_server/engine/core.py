"""The engine core: sequences go in, the tokens of each step come out. An ordinary synchronous object.

It runs in the worker, on one thread. A step decodes all running sequences once (`batch.py`) and, when one is due
(`pacing.py`), takes in a chunk of the waiting prompts (`prefill.py`), which begins with what is known of them
(`prefix_cache.py`). It knows no sockets, no text and no HTTP.
"""

import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine import messages
from mlx_manager.mlx_server.engine.batch import DecodeBatch, Row
from mlx_manager.mlx_server.engine.batching import try_batching
from mlx_manager.mlx_server.engine.grammar import Answer, Constraint, GrammarCompiler
from mlx_manager.mlx_server.engine.kv_cache import Cache, KvMemory
from mlx_manager.mlx_server.engine.messages import (
    MAX_BATCH_ROWS,
    Admitted,
    RequestFailed,
    RequestFinished,
    Step,
    Submit,
    UpMessage,
)
from mlx_manager.mlx_server.engine.pacing import Pace
from mlx_manager.mlx_server.engine.prefill import PrefillQueue
from mlx_manager.mlx_server.engine.prefix_cache import PrefixCache
from mlx_manager.mlx_server.engine.sampling import Guard, MakeProcessors, make_processors
from mlx_manager.mlx_server.types import Thinking
from mlx_manager.mlx_server.utils.memory import clear_cache

COMPILE_WAIT_SECONDS = 0.005
"""How long an engine waits for a grammar, and a message for the engine, when there is nothing else to do."""


class EngineCore:
    """`submit`, `cancel` and `step` in any order, all on the thread that made it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        kv_bytes: int = 2**62,
        prefix_bytes: int = 2**28,
        inter_token_seconds: float = 0.1,
        make_processors: MakeProcessors = make_processors,
        tokenizer_file: Path = Path("tokenizer.json"),
    ) -> None:
        """`kv_bytes` are for KV caches of sequences and stored prefixes together, `prefix_bytes` for the latter."""
        cache = make_prompt_cache(model)
        self.vocabulary_size = _vocabulary_size(model, cache)
        batching = try_batching(model, self.vocabulary_size)
        self._max_rows = MAX_BATCH_ROWS if batching.decodes else 1
        self.memory = KvMemory.measure(cache, kv_bytes)
        self.prefixes = PrefixCache(make_prompt_cache(model), min(prefix_bytes, kv_bytes))
        self._make_processors = make_processors
        self._batch = DecodeBatch(model, self.vocabulary_size, batching)
        self._prefill = PrefillQueue(model, self.prefixes, batching)
        self._pace = Pace(inter_token_seconds)
        self._grammars: GrammarCompiler[Row] = GrammarCompiler(tokenizer_file, self.vocabulary_size)
        self._rows: dict[int, Row] = {}
        self._pending: list[UpMessage] = []
        self._has_decoded = True
        self.busiest = 0
        """The most sequences at once, in the busy time that goes on or in the last one."""

    def __len__(self) -> int:
        """Sequences admitted and not finished."""
        return len(self._rows)

    @property
    def running(self) -> int:
        """Sequences that decode."""
        return len(self._batch)

    def limit(self, kv_bytes: int, prefix_bytes: int) -> None:
        """New limits. Stored prefixes go at once, rows that do not fit at the next step."""
        self.memory = replace(self.memory, limit_bytes=kv_bytes)
        self.prefixes.limit_bytes = min(prefix_bytes, kv_bytes)
        self.prefixes.shrink(self.prefixes.limit_bytes)

    def submit(self, message: Submit) -> None:
        """Admits the sequence, or refuses it; the next `step` tells which."""
        refusal = self._refusal(message)
        if refusal is not None:
            self._pending.append(RequestFailed(message.sequence, refusal, invalid=True))
            return
        if message.thinking is not None and not self._knows(message.thinking):
            self._pending.append(
                RequestFailed(
                    message.sequence,
                    "the tokens that mark the model's thinking lie outside of its vocabulary of "
                    f"{self.vocabulary_size}",
                )
            )
            return
        row = Row(
            sequence=message.sequence,
            tokens=list(message.prompt_tokens),
            prompt_tokens=len(message.prompt_tokens),
            max_tokens=message.max_tokens,
            stop_tokens=frozenset(message.stop_tokens),
            sampling=message.sampling,
            thinking=message.thinking,
            guard=Guard(self._make_processors(message.sampling, len(message.prompt_tokens))),
            logprobs=message.logprobs,
            prompt_logprobs=message.prompt_logprobs,
        )
        self.busiest = max(self.busiest, len(self._rows) + 1) if self._rows else 1
        self._rows[row.sequence] = row
        if message.grammar is not None:
            self._grammars.start(row, message.grammar)
            return
        if row.thinking is not None:
            row.constraint = self._constraint(row, None)
        self._admit(row)

    def cancel(self, sequence: int) -> None:
        row = self._rows.get(sequence)
        if row is not None:
            self._drop([row])

    def step(self) -> list[UpMessage]:
        """One decode step of all running sequences, or one chunk of the prompts that wait when it is due.

        What there is to say of the one does not wait for the other.
        """
        self._take_compiled()
        if self._pending:
            events, self._pending = self._pending, []
            return events
        if self._chunk_is_due():
            self._has_decoded = False
            return self._take_prompts_in()
        self._has_decoded = True
        return self._decode() if self._batch else []

    def release_memory(self) -> None:
        """For an engine that has been idle for a while: gives what MLX and the allocator keep back to the system."""
        mx.synchronize()
        clear_cache()

    def _chunk_is_due(self) -> bool:
        if not self._prefill.may_begin(self._may_join):
            return False
        return not self._batch or (self._has_decoded and self._pace.chunk_is_due())

    def _admit(self, row: Row) -> None:
        self._prefill.add(row)
        self._pending.append(Admitted(row.sequence))

    def _take_compiled(self) -> None:
        idle = not self._batch and not self._prefill and not self._pending
        for compiled in self._grammars.take(COMPILE_WAIT_SECONDS if idle else 0):
            row = compiled.ticket
            if self._rows.get(row.sequence) is not row:
                continue  # cancelled
            if compiled.answer is None:
                del self._rows[row.sequence]
                self._pending.append(RequestFailed(row.sequence, compiled.failure or "", invalid=True))
                continue
            row.constraint = self._constraint(row, compiled.answer)
            self._admit(row)

    def _constraint(self, row: Row, answer: Answer | None) -> Constraint:
        known = frozenset(token for token in row.stop_tokens if 0 <= token < self.vocabulary_size)
        return Constraint(answer, known, row.thinking)

    def _decode(self) -> list[UpMessage]:
        began = time.perf_counter()
        self._make_room()
        drawn = self._batch.step()
        ended: list[UpMessage] = []
        done: list[Row] = []
        for row, token in drawn:
            reason = row.finish_reason(token)
            if reason is not None:
                done.append(row)
                ended.append(RequestFinished(row.sequence, reason))
        self._redraw(self._batch.fallen_short)
        guilty = [row for row in self._batch.rows if row.failure is not None and row not in done]
        ended += [RequestFailed(row.sequence, row.failure or "") for row in guilty]
        if done or guilty:
            self._drop(done + guilty)
        self._pace.decoded(time.perf_counter() - began)
        if not drawn:
            return ended
        return [Step([row.sequence for row, _ in drawn], [token for _, token in drawn], self._batch.logprobs), *ended]

    def _take_prompts_in(self) -> list[UpMessage]:
        while_decoding = bool(self._batch)
        if while_decoding:
            began = time.perf_counter()
            self._batch.wait()
            self._pace.decoded(time.perf_counter() - began)
        self._shrink_prefixes(len(self._batch) + 1, max(self._batch.longest, self._prefill.longest))
        began = time.perf_counter()
        taken = self._prefill.step(self._pace.chunk_tokens(while_decoding), self._may_join)
        if taken is None:
            return []
        self._pace.prefilled(taken.tokens, time.perf_counter() - began, while_decoding)
        if taken.rows:
            self._batch.join(taken.rows, taken.cache)
        scores = [taken.prompt_logprobs] if taken.prompt_logprobs is not None else []
        begun = [row for row in taken.rows if not row.generated]
        return [
            *scores,
            *(messages.Prefilled(row.sequence, row.cached_tokens or 0, row.queue_seconds) for row in begun),
        ]

    def _may_join(self, rows: int, longest: int) -> bool:
        """Whether so many more rows may run. The first always may: that it fits alone was checked before."""
        running = len(self._batch)
        if running + rows == 1:
            return True
        return running + rows <= self._max_rows and self.memory.fits(running + rows, max(longest, self._batch.longest))

    def _make_room(self) -> None:
        """For one more token of every row: stored prefixes go first, then the rows that came last begin again later."""
        while len(self._batch) > 1 and not self.memory.fits(len(self._batch), self._batch.longest + 1):
            self._begin_again(self._batch.rows[-1])
        self._shrink_prefixes(len(self._batch), self._batch.longest + 1)

    def _redraw(self, fallen_short: list[Row]) -> None:
        """Rows that drew among too few tokens begin again, with those that they have, and draw among all from then on.

        What a draw is made of has been overwritten by the next step, which was launched before the draw could be read.
        """
        for row in fallen_short:
            row.needs_whole_nucleus = True
            if not self.prefixes.needs_snapshots:
                self.prefixes.store(*self._batch.held(row))
            self._begin_again(row)

    def _begin_again(self, row: Row) -> None:
        self._batch.remove([row])
        self._prefill.add_first(row)

    def _shrink_prefixes(self, rows: int, longest: int) -> None:
        """To what so many rows leave of the memory."""
        left = self.memory.limit_bytes - self.memory.needed(rows, longest)
        self.prefixes.shrink(min(self.prefixes.limit_bytes, left))

    def _drop(self, rows: list[Row]) -> None:
        for row in rows:
            del self._rows[row.sequence]
            if row in self._batch.rows:
                self.prefixes.store(*self._batch.held(row))
        self._prefill.remove({row.sequence for row in rows})
        self._batch.remove(rows)

    def _refusal(self, message: Submit) -> str | None:
        """Why the sequence must not reach MLX, where an index beyond the vocabulary is not checked again."""
        prompt, largest = message.prompt_tokens, self.memory.largest_sequence_tokens
        if not prompt:
            return "The prompt has no tokens."
        if max(prompt) >= self.vocabulary_size or min(prompt) < 0:
            return f"The prompt has token ids outside of the model's vocabulary of {self.vocabulary_size}."
        if message.max_tokens < 1:
            return f"max_tokens is {message.max_tokens}. It must be 1 or more."
        if len(prompt) + message.max_tokens > largest:
            return (
                f"The request needs {len(prompt) + message.max_tokens} tokens (prompt {len(prompt)} + completion "
                f"{message.max_tokens}), but only {largest} fit in memory now. Reduce max_tokens or the prompt, or "
                "raise MLX_SERVER_MAX_MEMORY_GB."
            )
        return None

    def _knows(self, thinking: Thinking) -> bool:
        marks = (thinking.open_token, thinking.again_token, *thinking.close_tokens)
        tokens = [token for token in marks if token is not None]
        return bool(thinking.close_tokens) and all(0 <= token < self.vocabulary_size for token in tokens)


def _vocabulary_size(model: nn.Module, cache: Cache) -> int:
    """Rows of the logits, read from a forward pass of one token, which warms the model up as well."""
    logits = model(mx.array([[0]]), cache=cache)
    mx.eval(logits)
    return int(logits.shape[-1])
