"""Executes plans: the only part of the engine that owns arrays. Makes no decisions.

Holds the model, the caches of prompts in prefill, the decode batch (`batch.py`), the stored prefixes
(`prefix_cache.py`) and the compiled grammars (`grammar.py`). Runs in the worker, on the engine's thread.
"""

import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlx_manager.mlx_server.engine.batch import DecodeBatch, Row, Share
from mlx_manager.mlx_server.engine.batching import try_batching
from mlx_manager.mlx_server.engine.device import computes_on_gpu
from mlx_manager.mlx_server.engine.disk_cache import DiskCache, DiskOptions
from mlx_manager.mlx_server.engine.grammar import CompiledGrammar, Constraint, GrammarCompiler
from mlx_manager.mlx_server.engine.kv_cache import (
    Cache,
    RowCache,
    RowsCache,
    bytes_per_row,
    bytes_per_token,
    cut_bytes_per_token,
    growing_layers,
)
from mlx_manager.mlx_server.engine.logprobs import score_prompt
from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.engine.plan import (
    Chunk,
    Compiled,
    Discard,
    DiskEvent,
    DiskFailed,
    Edit,
    Evict,
    ModelFacts,
    NodeSize,
    Outcome,
    Plan,
    Read,
    Restore,
    Segment,
    Spill,
    Split,
    Store,
)
from mlx_manager.mlx_server.engine.prefix_cache import PrefixCache
from mlx_manager.mlx_server.utils.memory import clear_cache

WAIT_SECONDS = 0.005
"""Longest wait for a grammar or the disk when there is no other work. It also delays the next message."""

MIN_PASS_BYTES = 2**25
"""The time to build a model call is about that of reading this much memory."""


class Runner:
    """Runs plans, on the thread that constructed it."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer_file: Path,
        repeats_shapes: bool | None = None,
        pass_bytes: int | None = None,
        disk: DiskOptions | None = None,
        *,
        share: Share | None = None,
        trial: nn.Module | None = None,
    ) -> None:
        """`repeats_shapes` and `pass_bytes` (`ModelFacts`) are None for what fits the device and the model.

        For one of several ranks, `share` gives the drawn tokens of rank 0, and `trial` the model for the trials.
        """
        cache = make_prompt_cache(model)
        vocabulary_size = _vocabulary_size(model, cache)
        repeats_shapes = may_repeat_shapes(cache, repeats_shapes)
        batching = try_batching(trial if trial is not None else model, vocabulary_size, repeats_shapes)
        self._model = model
        self._prefixes = PrefixCache(make_prompt_cache(model))
        self._disk_events: list[DiskEvent] = []
        self._disk = self._open(disk, cache) if disk is not None else None
        self.facts = ModelFacts(
            vocabulary_size,
            batching.prefills,
            batching.decodes,
            bytes_per_token(cache),
            bytes_per_row(cache),
            cut_bytes_per_token(cache),
            self._prefixes.needs_snapshots,
            pass_bytes=_pass_bytes(model) if pass_bytes is None else pass_bytes,
            growing_layers=growing_layers(cache),
            repeats_shapes=repeats_shapes and batching.prefills,
            disk_salt=self._disk.salt if self._disk is not None else "",
        )
        self._exact = not self.facts.repeats_shapes
        decoder = batching.compiled if batching.compiled is not None and share is None else model
        self._batch = DecodeBatch(decoder, vocabulary_size, batching.decodes, self._exact, share)
        self._grammars: GrammarCompiler[Row] = GrammarCompiler(tokenizer_file, vocabulary_size)
        self._rows: dict[int, Row] = {}
        self._prefilling: dict[int, RowsCache] = {}
        """Caches of sequences in prefill."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of the caches of all sequences."""
        return self._batch.nbytes + sum(cache.nbytes for cache in self._prefilling.values())

    def run(self, plan: Plan) -> Outcome:
        began = time.perf_counter()
        if self._disk is not None:
            self._disk.hand_over()
        node_sizes = self._edit(plan.edits) if plan.edits else []
        if plan.preempt or plan.free:
            self._release(plan)
        if plan.groups:
            self._batch.edit(plan.groups)
        for message in plan.begin:
            self._begin(message)
        if plan.chunk is not None:
            outcome = self._prefill(plan.chunk)
        else:
            outcome = self._batch.step() if plan.decode else Outcome()
            outcome.seconds = time.perf_counter() - began
        outcome.node_sizes = node_sizes
        if len(self._grammars):
            outcome.compiled = self._collect_compiled(WAIT_SECONDS if plan.wait else 0)
        outcome.disk, self._disk_events = self._disk_events, []
        if self._disk is not None:
            outcome.disk += self._disk.take(WAIT_SECONDS if plan.wait and not len(self._grammars) else 0)
        return outcome

    def release_memory(self) -> None:
        """Returns memory that MLX and the allocator keep for reuse to the system. For an idle engine."""
        mx.synchronize()
        clear_cache()

    def close(self, seconds: float) -> None:
        """Waits until what was spilled is on disk, or for `seconds`."""
        if self._disk is not None:
            self._disk.close(seconds)

    def _open(self, options: DiskOptions, cache: Cache) -> DiskCache | None:
        """None if the disk tier does not work with this folder or model."""
        try:
            return options.open(cache)
        except (OSError, TypeError) as exc:
            self._disk_events.append(DiskFailed(str(exc)))
            return None

    def _edit(self, edits: list[Edit]) -> list[NodeSize]:
        for edit in edits:
            match edit:
                case Store():
                    self._prefixes.store(edit, self._held(edit.sequence))
                case Split():
                    self._prefixes.split(edit)
                case Evict(node):
                    self._prefixes.evict(node)
                case _ if self._disk is not None:
                    self._edit_disk(edit, self._disk)
        return self._prefixes.sizes([edit.node for edit in edits if isinstance(edit, Store | Restore)])

    def _edit_disk(self, edit: Edit, disk: DiskCache) -> None:
        match edit:
            case Spill():
                self._prefixes.spill(edit, disk)
            case Read(block):
                disk.read(block)
            case Restore():
                self._prefixes.restore(edit, disk)
            case Discard(name):
                disk.discard(name)

    def _held(self, sequence: int) -> RowCache:
        cache = self._prefilling.get(sequence)
        return cache.row(0) if cache is not None else self._batch.held(sequence)

    def _release(self, plan: Plan) -> None:
        self._batch.remove({*plan.preempt, *plan.free})
        for sequence in (*plan.preempt, *plan.free):
            self._prefilling.pop(sequence, None)
        for sequence in plan.free:
            del self._rows[sequence]

    def _begin(self, message: Submit) -> None:
        row = self._rows[message.sequence] = Row(message)
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
        cache = self._cache_of(chunk)
        if any(segment.tokens for segment in chunk.segments):
            logits = cache.prefill(self._model, [segment.tokens for segment in chunk.segments], chunk.queries)
            if chunk.scored is not None:
                row = self._rows[chunk.segments[0].sequence]
                scored = chunk.scored
                outcome.prompt_logprobs = score_prompt(
                    row, scored.start, scored.targets, logits[0, : len(scored.targets)]
                )
            mx.eval(list(cache.arrays()))
        outcome.seconds = time.perf_counter() - began
        if chunk.joins:
            for join in chunk.joins:
                self._prefilling.pop(join.sequence, None)
            self._batch.join([self._rows[join.sequence] for join in chunk.joins], chunk.joins, cache)
        else:
            self._prefilling[chunk.segments[0].sequence] = cache
        return outcome

    def _cache_of(self, chunk: Chunk) -> RowsCache:
        """The cache for a chunk. A single row is in mlx-lm's own caches, unless shapes repeat."""
        rows = [self._row_of(segment) for segment in chunk.segments]
        if len(rows) > 1 or not (self._exact or rows[0].is_batch):
            return RowsCache.merge(rows, self._exact, chunk.rows, chunk.tokens)
        if not self._exact:
            rows[0].resize(chunk.rows, chunk.tokens)
        return rows[0]

    def _row_of(self, segment: Segment) -> RowsCache:
        cache = self._prefilling.get(segment.sequence)
        if cache is None:
            length = segment.prefix.length if segment.prefix is not None else 0
            cache = RowsCache.alone(self._prefixes.load(segment.prefix), length)
        return cache


def _pass_bytes(model: nn.Module) -> int:
    weights_bytes: int = sum(part.nbytes for _, part in tree_flatten(model.parameters()))
    return max(MIN_PASS_BYTES, weights_bytes)


def may_repeat_shapes(cache: Cache, wanted: bool | None = None) -> bool:
    """Whether the sizes of model calls may come from a small set, if `wanted` or, when it is None, on a GPU."""
    if wanted is None:
        wanted = computes_on_gpu()
    return wanted and all(type(layer) is KVCache for layer in cache)


def _vocabulary_size(model: nn.Module, cache: Cache) -> int:
    """Width of the logits, from a forward pass of one token, which also warms the model up."""
    logits = model(mx.array([[0]]), cache=cache)
    mx.eval(logits)
    return int(logits.shape[-1])
