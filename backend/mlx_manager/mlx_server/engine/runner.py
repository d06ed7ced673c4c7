"""Executes plans: the only part of the engine that owns arrays. Makes no decisions.

Holds the model, the caches of prompts in prefill, the decode batch (`batch.py`), the stored prefixes
(`prefix_cache.py`) and the compiled grammars (`grammar.py`). Runs in the worker, on the engine's thread.
"""

import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.batch import DecodeBatch, Row, Share
from mlx_manager.mlx_server.engine.batching import prefill_together, try_batching
from mlx_manager.mlx_server.engine.grammar import CompiledGrammar, Constraint, GrammarCompiler
from mlx_manager.mlx_server.engine.kv_cache import (
    GROWTH_TOKENS,
    Cache,
    RowCache,
    bytes_per_row,
    bytes_per_token,
    cut_bytes_per_token,
    merge,
)
from mlx_manager.mlx_server.engine.logprobs import score_prompt
from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.engine.plan import (
    Chunk,
    Compiled,
    Edit,
    Evict,
    ModelFacts,
    NodeSize,
    Outcome,
    Plan,
    Split,
    Store,
)
from mlx_manager.mlx_server.engine.prefix_cache import PrefixCache
from mlx_manager.mlx_server.engine.sampling import Guard, MakeProcessors
from mlx_manager.mlx_server.utils.memory import clear_cache

COMPILE_WAIT_SECONDS = 0.005
"""Longest wait for a grammar when there is no other work. It also delays the next message."""


class Runner:
    """Runs plans, on the thread that constructed it."""

    def __init__(
        self,
        model: nn.Module,
        make_processors: MakeProcessors,
        tokenizer_file: Path,
        *,
        share: Share | None = None,
        trial: nn.Module | None = None,
    ) -> None:
        """For one of several ranks, `share` gives the drawn tokens of rank 0, and `trial` the model for the trials."""
        cache = make_prompt_cache(model)
        vocabulary_size = _vocabulary_size(model, cache)
        self._model = model
        self._batching = try_batching(trial if trial is not None else model, vocabulary_size)
        self._prefixes = PrefixCache(make_prompt_cache(model))
        self.facts = ModelFacts(
            vocabulary_size,
            self._batching.prefills,
            self._batching.decodes,
            bytes_per_token(cache),
            bytes_per_row(cache),
            GROWTH_TOKENS,
            cut_bytes_per_token(cache),
            self._prefixes.needs_snapshots,
        )
        self._make_processors = make_processors
        self._batch = DecodeBatch(model, vocabulary_size, self._batching, share)
        self._grammars: GrammarCompiler[Row] = GrammarCompiler(tokenizer_file, vocabulary_size)
        self._rows: dict[int, Row] = {}
        self._prefilling: dict[int, Cache] = {}
        """Caches of sequences in prefill."""

    def run(self, plan: Plan) -> Outcome:
        began = time.perf_counter()
        node_sizes = self._edit(plan.edits) if plan.edits else []
        if plan.preempt or plan.free:
            self._release(plan)
        for message in plan.begin:
            self._begin(message)
        if plan.chunk is not None:
            outcome = self._prefill(plan.chunk)
        else:
            outcome = self._batch.step() if plan.decode else Outcome()
            outcome.seconds = time.perf_counter() - began
        outcome.node_sizes = node_sizes
        if len(self._grammars):
            outcome.compiled = self._collect_compiled(COMPILE_WAIT_SECONDS if plan.wait else 0)
        return outcome

    def release_memory(self) -> None:
        """Returns memory that MLX and the allocator keep for reuse to the system. For an idle engine."""
        mx.synchronize()
        clear_cache()

    def _edit(self, edits: list[Edit]) -> list[NodeSize]:
        for edit in edits:
            match edit:
                case Store():
                    self._prefixes.store(edit, self._held(edit.sequence))
                case Split():
                    self._prefixes.split(edit)
                case Evict(node):
                    self._prefixes.evict(node)
        return self._prefixes.sizes([edit.node for edit in edits if isinstance(edit, Store)])

    def _held(self, sequence: int) -> RowCache:
        cache = self._prefilling.get(sequence)
        return RowCache(cache) if cache is not None else self._batch.held(sequence)

    def _release(self, plan: Plan) -> None:
        self._batch.remove({*plan.preempt, *plan.free})
        for sequence in (*plan.preempt, *plan.free):
            self._prefilling.pop(sequence, None)
        for sequence in plan.free:
            del self._rows[sequence]

    def _begin(self, message: Submit) -> None:
        guard = Guard(self._make_processors(message.sampling, len(message.prompt_tokens)))
        row = self._rows[message.sequence] = Row(message, guard)
        if message.grammar is not None:
            self._grammars.start(row, message.grammar)
        elif message.thinking is not None:
            row.constraint = self._constraint(message, None)

    def _collect_compiled(self, wait_seconds: float) -> list[Compiled]:
        compiled = []
        for done in self._grammars.take(wait_seconds):
            row = done.ticket
            if self._rows.get(row.sequence) is not row:
                continue  # cancelled
            if done.grammar is not None:
                row.constraint = self._constraint(row.submitted, done.grammar)
            compiled.append(Compiled(row.sequence, None if done.grammar is not None else done.failure or ""))
        return compiled

    def _constraint(self, message: Submit, grammar: CompiledGrammar | None) -> Constraint:
        known = frozenset(token for token in message.stop_tokens if 0 <= token < self.facts.vocabulary_size)
        return Constraint(grammar, known, message.thinking)

    def _prefill(self, chunk: Chunk) -> Outcome:
        outcome = Outcome()
        if len(self._batch):
            began = time.perf_counter()
            self._batch.wait()
            outcome.drain_seconds = time.perf_counter() - began
        began = time.perf_counter()
        caches = [self._cache_of(chunk, place) for place in range(len(chunk.segments))]
        if len(caches) == 1:
            cache = self._prefill_alone(chunk, caches[0], outcome)
        else:
            cache = merge(caches)
            prefill_together(self._model, cache, [segment.tokens for segment in chunk.segments])
        outcome.seconds = time.perf_counter() - began
        if chunk.joins:
            for join in chunk.joins:
                self._prefilling.pop(join.sequence, None)
            self._batch.join([self._rows[join.sequence] for join in chunk.joins], chunk.joins, cache)
        return outcome

    def _cache_of(self, chunk: Chunk, place: int) -> Cache:
        segment = chunk.segments[place]
        cache = self._prefilling.get(segment.sequence)
        return cache if cache is not None else self._prefixes.load(segment.prefix)

    def _prefill_alone(self, chunk: Chunk, cache: Cache, outcome: Outcome) -> Cache:
        (segment,) = chunk.segments
        if segment.tokens:
            logits = self._model(mx.array([segment.tokens]), cache=cache)
            if chunk.scored is not None:
                row = self._rows[segment.sequence]
                outcome.prompt_logprobs = score_prompt(row, chunk.scored.start, chunk.scored.targets, logits[0])
            mx.eval([layer.state for layer in cache])
        if not chunk.joins:
            self._prefilling[segment.sequence] = cache
        return merge([cache]) if chunk.joins and self._batching.decodes else cache


def _vocabulary_size(model: nn.Module, cache: Cache) -> int:
    """Width of the logits, from a forward pass of one token, which also warms the model up."""
    logits = model(mx.array([[0]]), cache=cache)
    mx.eval(logits)
    return int(logits.shape[-1])
