"""Turns the chunks of an OpenAI stream of a chat or a completion into events. Knows no HTTP."""

import math
from collections.abc import Iterator
from typing import Literal

from mlx_manager.mlx_server.parsers.stop import StopStringParser
from mlx_manager.mlx_server.services.upstreams.failures import UpstreamFailure, error_object
from mlx_manager.mlx_server.services.upstreams.finish_reasons import read_finish_reason
from mlx_manager.mlx_server.services.upstreams.shapes import (
    BadChunk,
    ChoiceChunk,
    Delta,
    LogprobColumns,
    Token,
    TopToken,
    read_chunk,
    texts_of,
)
from mlx_manager.mlx_server.services.upstreams.tool_calls import ToolCallCollector
from mlx_manager.mlx_server.types import (
    ChoiceFinished,
    Completed,
    FinishReason,
    GenerationEvent,
    Logprobs,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenLogprob,
    TopLogprob,
    Usage,
)

_CUT_SHORT: tuple[FinishReason, ...] = ("length", "content_filter")


class ChunkReader:
    """Reads the chunks of one request for a number of choices."""

    def __init__(self, choices: int, stop: tuple[str, ...] = (), include_stop: bool = False) -> None:
        """`stop` are the stop strings that were not sent to the upstream."""
        self._choices = [_ChoiceReader(index, StopStringParser(stop, include=include_stop)) for index in range(choices)]
        self._usage: object = None

    def read(self, payload: bytes) -> Iterator[GenerationEvent]:
        """Raises BadChunk for an invalid chunk, and UpstreamFailure for an error."""
        chunk = read_chunk(payload)
        if chunk.is_failure:
            raise UpstreamFailure(error_object(payload))
        if chunk.usage is not None:
            self._usage = chunk.usage
        for place, choice in enumerate(chunk.choices or ()):
            index = choice.index if choice.index is not None else place
            if not 0 <= index < len(self._choices):
                raise BadChunk(f"sent choice index {index} for {len(self._choices)} requested choices")
            yield from self._choices[index].read(choice)

    @property
    def stopped(self) -> bool:
        """Whether all choices met a stop string: the reader ignores later chunks."""
        return all(choice.stopped for choice in self._choices)

    @property
    def ended(self) -> bool:
        """Whether every choice has a finish reason. The upstream may still send more."""
        return all(choice.reason is not None or choice.stopped for choice in self._choices)

    @property
    def expects_no_more(self) -> bool:
        """Whether it has `ended`, and each finish reason came in a chunk without content: no more is expected."""
        return self.ended and all(choice.expects_no_more or choice.stopped for choice in self._choices)

    def finish(self) -> Iterator[GenerationEvent]:
        """The remaining events, after the end of the stream or a stop. Raises BadChunk for an incomplete answer."""
        for choice in self._choices:
            yield from choice.finish()
        yield Completed(self._read_usage())

    def _read_usage(self) -> Usage:
        usage = self._usage if isinstance(self._usage, dict) else {}
        completion_tokens = _count(usage, "completion_tokens")
        if completion_tokens is None:  # each piece of text is at least one token
            completion_tokens = sum(choice.pieces for choice in self._choices)
        return Usage(
            _count(usage, "prompt_tokens") or 0,
            completion_tokens,
            cached_tokens=_count(usage.get("prompt_tokens_details"), "cached_tokens") or 0,
            reasoning_tokens=_count(usage.get("completion_tokens_details"), "reasoning_tokens") or 0,
        )


class _ChoiceReader:
    def __init__(self, index: int, stop: StopStringParser) -> None:
        self.pieces = 0
        self.reason: FinishReason | Literal["broken"] | None = None
        self.expects_no_more = False
        self._reason_as_sent: object = None
        self._index = index
        self._stop = stop
        self._named_stop: str | None = None
        self._calls = ToolCallCollector(index)
        self._offset = 0

    @property
    def stopped(self) -> bool:
        return self._stop.matched is not None

    def read(self, choice: ChoiceChunk) -> Iterator[GenerationEvent]:
        if self.stopped:
            return
        delta = choice.delta or choice.message or Delta()
        if delta.content is None:
            delta.content = choice.text
        texts = texts_of(delta)
        logprobs = self._logprobs(choice.logprobs) if isinstance(choice.logprobs, LogprobColumns) else ()
        if texts["reasoning"]:
            self.pieces += 1
            yield ReasoningDelta(self._index, texts["reasoning"], logprobs if not texts["text"] else ())
        if texts["refusal"]:
            self.pieces += 1
            yield RefusalDelta(self._index, texts["refusal"])
        if texts["text"] or (logprobs and not texts["reasoning"]):
            self.pieces += 1
            text = self._stop.feed(texts["text"])
            if text or logprobs:
                yield TextDelta(self._index, text, logprobs)
        pieces = delta.call_pieces
        for piece in pieces:
            self.pieces += 1
            yield from self._calls.add(piece)
        self._update_reason(choice.finish_reason)
        if isinstance(choice.stop_reason, str):
            self._named_stop = choice.stop_reason
        self.expects_no_more = self.reason is not None and not any(texts.values()) and not pieces

    def _update_reason(self, sent: object) -> None:
        """Some servers send a reason with every chunk: the choice continues, and any other reason replaces "stop"."""
        reason = read_finish_reason(sent)
        if reason == "broken" or (reason is not None and self.reason in (None, "stop")):
            self.reason, self._reason_as_sent = reason, sent

    def finish(self) -> Iterator[GenerationEvent]:
        if self.stopped:
            self.reason = "stop"
        if self.reason is None:
            raise BadChunk(f"ended its answer before the end of choice {self._index}")
        if self.reason == "broken":
            raise BadChunk(
                f"ended choice {self._index} with finish_reason {self._reason_as_sent!r}, which does not mean a "
                "complete answer"
            )
        rest = self._stop.flush()
        if rest:
            yield TextDelta(self._index, rest)
        yield from self._calls.finish(whole=not self.stopped and self.reason not in _CUT_SHORT)
        yield ChoiceFinished(self._index, self.reason, self._stop.matched or self._named_stop)

    def _logprobs(self, logprobs: LogprobColumns) -> Logprobs:
        if logprobs.content is not None:
            return tuple(map(self._chat_logprob, logprobs.content))
        return tuple(self._column(logprobs, place) for place in range(len(logprobs.tokens or ())))

    def _chat_logprob(self, token: Token) -> TokenLogprob:
        text = _bytes(token)
        offset = self._offset
        self._offset += len(text.decode(errors="ignore"))
        top = tuple(TopLogprob(other.token, other.logprob, _bytes(other)) for other in token.top_logprobs or ())
        return TokenLogprob(token.token, token.logprob, text, top, offset)

    def _column(self, columns: LogprobColumns, place: int) -> TokenLogprob:
        try:
            token = (columns.tokens or [])[place]
            logprob = (columns.token_logprobs or [])[place]
            offset = columns.text_offset[place] if columns.text_offset is not None else self._offset
            likeliest = columns.top_logprobs[place] if columns.top_logprobs is not None else None
        except IndexError as exc:
            raise BadChunk("sent columns of logprobs of different lengths") from exc
        self._offset = offset + len(token)
        top = tuple(TopLogprob(other, value, other.encode()) for other, value in (likeliest or {}).items())
        return TokenLogprob(
            token, logprob if logprob is not None else 0.0, token.encode(), top, offset, predicted=logprob is not None
        )


def _bytes(token: TopToken) -> bytes:
    return token.token.encode() if token.bytes is None else bytes(token.bytes)


def _count(usage: object, name: str) -> int | None:
    """A finite, non-negative count, else None: bad usage must not fail the answer."""
    count = usage.get(name) if isinstance(usage, dict) else None
    if not isinstance(count, int | float) or not math.isfinite(count) or count < 0:
        return None
    return int(count)
