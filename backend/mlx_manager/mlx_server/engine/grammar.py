"""Constrained decoding: which tokens a row may draw next, by its grammar and its thinking budget.

Compiles grammars in separate threads; everything else runs in the worker on the engine's thread. The first grammar
imports llguidance and builds its vocabulary: 0.4 s and 80 MB for 128,000 tokens. Knows no requests.
"""

import os
import queue
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import mlx.core as mx
import numpy as np

from mlx_manager.mlx_server.types import Thinking

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

T = TypeVar("T")
Bits = np.ndarray[Any, np.dtype[np.int32]]
"""(rows, words): one bit for each token id; the lowest bit of the first word is token 0. Words are little-endian."""

WORD_BITS = 32
STACK_BYTES = 2**26
"""llguidance compiles recursively. Eight times the stack of the process that validates grammars."""
MAX_LEXER_STATES = 50_000
"""Per row; a state takes one to two kB."""
MAX_CACHED_GRAMMARS = 32
MAX_CACHED_CHARACTERS = 2**20


class InvalidGrammar(Exception):
    """The model cannot follow the grammar; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Compilation(Generic[T]):
    """The result of the compilation that was started with `ticket`."""

    ticket: T
    grammar: "CompiledGrammar | None"
    failure: str | None


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A compiled grammar for one row. llguidance ends it with `eos_tokens`, not with the row's stop tokens."""

    matcher: "LLMatcher"
    eos_tokens: tuple[int, ...]


class GrammarCompiler(Generic[T]):
    """`start` compilations, each in its own thread, and `take` the finished ones. Caches compiled grammars.

    A compilation takes 1 ms, or up to two seconds for the largest grammars that the API process accepts.
    """

    def __init__(self, tokenizer_file: Path, vocabulary_size: int) -> None:
        self._tokenizer_file = tokenizer_file
        self._vocabulary_size = vocabulary_size
        self._tokenizer: LLTokenizer | None = None
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._running = 0
        self._done: queue.SimpleQueue[Compilation[T]] = queue.SimpleQueue()

    def __len__(self) -> int:
        """Compilations started and not taken."""
        return self._running

    def start(self, ticket: T, grammar: str) -> None:
        self._running += 1
        before = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=self._run, args=(ticket, grammar), name="grammar", daemon=True).start()
        finally:
            threading.stack_size(before)

    def take(self, wait_seconds: float) -> list[Compilation[T]]:
        """All finished compilations. Waits up to `wait_seconds` for the first one."""
        done: list[Compilation[T]] = []
        try:
            if wait_seconds > 0 and self._running:
                done.append(self._done.get(timeout=wait_seconds))
            while len(done) < self._running:
                done.append(self._done.get_nowait())
        except queue.Empty:
            pass
        self._running -= len(done)
        return done

    def _run(self, ticket: T, grammar: str) -> None:
        try:
            self._done.put(Compilation(ticket, self._compile_cached(grammar), None))
        except Exception as exc:
            self._done.put(Compilation(ticket, None, str(exc)))

    def _compile_cached(self, grammar: str) -> CompiledGrammar:
        """A copy at the grammar's start, with the first mask computed: it is the slowest, and may fail."""
        with self._lock:
            tokenizer = self._tokenizer = self._tokenizer or self._load_tokenizer()
            cached = self._cache.get(grammar)
            if cached is not None:
                self._cache.move_to_end(grammar)
                return CompiledGrammar(cached.deep_copy(), tuple(tokenizer.eos_tokens))
        matcher = _compile(tokenizer, grammar)
        with self._lock:
            self._remember(grammar, matcher)
            return CompiledGrammar(matcher.deep_copy(), tuple(tokenizer.eos_tokens))

    def _load_tokenizer(self) -> "LLTokenizer":
        from llguidance import LLTokenizer

        if not self._tokenizer_file.exists():
            raise InvalidGrammar(
                "The model has no tokenizer.json, which grammar-constrained output requires. Use another model, or "
                "send the request without a grammar."
            )
        return LLTokenizer(str(self._tokenizer_file), n_vocab=self._vocabulary_size)

    def _remember(self, grammar: str, matcher: "LLMatcher") -> None:
        self._cache[grammar] = matcher
        while len(self._cache) > MAX_CACHED_GRAMMARS or sum(map(len, self._cache)) > MAX_CACHED_CHARACTERS:
            self._cache.popitem(last=False)


def _compile(tokenizer: "LLTokenizer", grammar: str) -> "LLMatcher":
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        reason = matcher.get_error().splitlines()[0].rstrip(".")
        raise InvalidGrammar(f"The model cannot follow the grammar: {reason}. Simplify the grammar.")
    return matcher


class Constraint:
    """The tokens that one row may draw. Call `consume` with each drawn token; `Masks` computes the next mask.

    A thinking row ignores its grammar while it thinks; if it has one, it may not draw a stop token there. A row whose
    grammar is complete may only draw a stop token, or token 0 if it has none. All token ids are in the vocabulary.
    """

    def __init__(self, grammar: CompiledGrammar | None, stop_tokens: frozenset[int], thinking: Thinking | None) -> None:
        self.matcher = grammar.matcher if grammar is not None else None
        self._eos_tokens = grammar.eos_tokens if grammar is not None else ()
        self.stop_tokens = stop_tokens
        self.failure: str | None = None
        self.has_ended = False
        self._thinking = thinking
        self._thinking_tokens: list[int] = []
        self._may_open = thinking is not None and thinking.open_token is not None
        self._is_thinking = thinking is not None and not self._may_open
        self._is_complete = False
        self._forbidden_token = thinking.again_token if thinking is not None else None

    @property
    def is_unconstrained(self) -> bool:
        """Whether the row is unconstrained from now on: it has no grammar, and no rule about its thinking is left."""
        return self.matcher is None and not self._is_thinking and not self._may_open and self._forbidden_token is None

    @property
    def needs_matcher(self) -> bool:
        return self.matcher is not None and not self._is_thinking and not self._is_over

    @property
    def _is_over(self) -> bool:
        return self.has_ended or self.failure is not None

    def consume(self, token: int) -> None:
        if self._may_open:
            assert self._thinking is not None
            self._may_open = False
            if token == self._thinking.open_token:
                self._is_thinking = True
                return
        if self._is_thinking:
            self._consume_thinking(token)
        elif token in self.stop_tokens or self._is_complete:
            self.has_ended = True
        elif self.matcher is not None and not self._is_over and not self.matcher.consume_token(token):
            self.failure = f"token {token} is not allowed by the grammar: {self.matcher.get_error()}"

    def finish_mask(self, bits: Bits) -> None:
        """Completes the mask in `bits` (words,), which the matcher has filled if `needs_matcher`."""
        if self._is_thinking:
            self._mask_thinking(bits)
        elif self.needs_matcher:
            self._mask_answer(bits)
        else:
            bits[:] = -1
        if self._may_open and self.failure is None:
            assert self._thinking is not None
            assert self._thinking.open_token is not None
            _allow(bits, self._thinking.open_token)
        elif self._forbidden_token is not None and not self._is_thinking:
            _forbid(bits, self._forbidden_token)

    def _consume_thinking(self, token: int) -> None:
        assert self._thinking is not None
        self._thinking_tokens.append(token)
        close = self._thinking.close_tokens
        if tuple(self._thinking_tokens[-len(close) :]) == close:
            self._is_thinking = False

    def _mask_thinking(self, bits: Bits) -> None:
        assert self._thinking is not None
        close, budget = self._thinking.close_tokens, self._thinking.budget
        beyond = -1 if budget is None else len(self._thinking_tokens) - budget
        if beyond >= 0:
            bits[:] = 0
            _allow(bits, close[beyond % len(close)])
            return
        bits[:] = -1
        if self.matcher is not None:
            for token in self.stop_tokens:
                _forbid(bits, token)

    def _mask_answer(self, bits: Bits) -> None:
        assert self.matcher is not None
        if self.matcher.is_error():
            self.failure = self.matcher.get_error()
            bits[:] = -1
            return
        accepting = self.matcher.is_accepting()
        for token in self._eos_tokens if accepting else ():  # the row ends with its own stop tokens instead
            _forbid(bits, token)
        if self.matcher.is_stopped() or (accepting and not bits.any()):
            self._is_complete = True
            bits[:] = 0
            _allow(bits, min(self.stop_tokens, default=0))
        if accepting:
            for token in self.stop_tokens:
                _allow(bits, token)
        if not bits.any():
            self.failure = "no token of the model can continue its grammar"
            bits[:] = -1


class Masks:
    """Computes the masks of all constrained rows of a step together.

    `in_parallel`: in llguidance's own threads. On two cores that is one thread, which waits for a core behind MLX.
    """

    def __init__(self, vocabulary_size: int, in_parallel: bool | None = None) -> None:
        self._vocabulary_size = vocabulary_size
        self._in_parallel = (os.cpu_count() or 1) > 2 if in_parallel is None else in_parallel
        self._executor: LLExecutor | None = None

    def __call__(self, constraints: list[Constraint]) -> mx.array:
        """(constraints, V): whether each may draw each token."""
        bits = np.zeros((len(constraints), -(-self._vocabulary_size // WORD_BITS)), dtype=np.int32)
        matchers = [(c.matcher, i) for i, c in enumerate(constraints) if c.matcher is not None and c.needs_matcher]
        if matchers:
            self._fill(matchers, bits)
        for i, constraint in enumerate(constraints):
            constraint.finish_mask(bits[i])
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=self._vocabulary_size, bitorder="little")
        return mx.array(allowed.view(np.bool_))

    def _fill(self, matchers: "list[tuple[LLMatcher, int]]", bits: Bits) -> None:
        from llguidance import LLExecutor
        from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

        if not self._in_parallel:
            for matcher, row in matchers:
                fill_next_token_bitmask(matcher, bits, row)
            return
        self._executor = self._executor or LLExecutor()
        fill_next_token_bitmask_par(self._executor, matchers, bits)


def _allow(bits: Bits, token: int) -> None:
    bits.view(np.uint32)[token // WORD_BITS] |= np.uint32(1 << token % WORD_BITS)


def _forbid(bits: Bits, token: int) -> None:
    bits.view(np.uint32)[token // WORD_BITS] &= np.uint32(~(1 << token % WORD_BITS) & 0xFFFFFFFF)
