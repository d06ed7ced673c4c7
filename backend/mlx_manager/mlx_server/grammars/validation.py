"""Validates grammars before a request is admitted, in disposable processes. Runs on the event loop.

llguidance compiles most grammars in a millisecond. Some use unbounded time, memory or stack and would end the process
that compiles them, so a separate process does only this.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict

import msgspec

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.grammars.verdict import Question, Verdict
from mlx_manager.mlx_server.isolation.processes import ProcessFailed, ProcessPool
from mlx_manager.mlx_server.types import Grammar

logger = logging.getLogger(__name__)

MAX_SOURCE_CHARACTERS = 2**19
MAX_PROCESSES = 3
MAX_CACHED = 256
MAX_CACHED_CHARACTERS = 2**22
CHECK_SECONDS = 20.0
"""The process ends itself after two seconds of CPU time; this limit covers a process that gets no CPU time."""
MAX_VERDICT_BYTES = 2**24
MAX_REASON_CHARACTERS = 500

_KINDS = {
    "json_object": "JSON object",
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "choice": "list of choices",
    "lark": "grammar",
}


class GrammarValidator:
    """`await compile(grammar)` returns the value for the engine's `Submit.grammar`; `close` ends the processes.

    Starts processes on the first grammar. Caches the verdicts of the latest few hundred grammars. A slow grammar does
    not delay others.
    """

    def __init__(self) -> None:
        self._processes = ProcessPool(
            "mlx_manager.mlx_server.grammars.checker",
            max_idle=MAX_PROCESSES,
            answer_seconds=CHECK_SECONDS,
            max_answer_bytes=MAX_VERDICT_BYTES,
        )
        self._places = asyncio.Semaphore(MAX_PROCESSES)
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()

    async def compile(self, grammar: Grammar) -> Verdict:
        """Raises InvalidRequest for invalid or too large grammars, UnsupportedParameter if llguidance lacks a feature.

        Both have `grammar.param`; the message names the keyword of the JSON schema.
        """
        verdict = await self._verdict(grammar)
        if verdict.refusal is not None:
            kind = UnsupportedParameter if verdict.unsupported else InvalidRequest
            reason = verdict.refusal[:MAX_REASON_CHARACTERS]
            raise kind(
                f"Unusable {_KINDS[grammar.kind]}: {reason}. Send a corrected or simpler one.", param=grammar.param
            )
        return verdict

    async def close(self) -> None:
        await asyncio.to_thread(self._processes.close)

    async def _verdict(self, grammar: Grammar) -> Verdict:
        if len(grammar.source) > MAX_SOURCE_CHARACTERS:
            return Verdict(refusal=f"it has more than {MAX_SOURCE_CHARACTERS} characters")
        what = grammar.param.partition(".")[0] if grammar.kind == "json_schema" else ""
        try:
            question = msgspec.json.encode(Question(grammar.kind, grammar.source, what, grammar.strict))
        except UnicodeEncodeError:
            return Verdict(refusal="it contains a lone surrogate, which is not valid Unicode")
        key = hashlib.sha256(question).digest()
        verdict = self._cache.get(key)
        if verdict is None:
            async with self._places:
                verdict = await self._check(grammar, question)
        self._remember(key, verdict)
        return verdict

    def _remember(self, key: bytes, verdict: Verdict) -> None:
        self._cache[key] = verdict
        self._cache.move_to_end(key)
        while len(self._cache) > MAX_CACHED or sum(map(_size, self._cache.values())) > MAX_CACHED_CHARACTERS:
            self._cache.popitem(last=False)

    async def _check(self, grammar: Grammar, question: bytes) -> Verdict:
        try:
            answer = await self._processes.answer(question)
        except ProcessFailed as exc:
            logger.warning("Grammar check failed: param=%s, %s", grammar.param, exc)
            return Verdict(refusal="it takes too much time or memory to compile")
        return msgspec.json.decode(answer, type=Verdict)


def _size(verdict: Verdict) -> int:
    return len(verdict.grammar) + sum(map(len, verdict.unenforced))
