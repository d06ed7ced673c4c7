"""Makes the span tree and the metrics of a request from its record, by OpenTelemetry's GenAI conventions.

It sees events only, so it traces every protocol and backend. Each token costs one clock reading; spans and metrics are
made at the end.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

from mlx_manager.mlx_server.observability import (
    AttributeValue,
    PastSpan,
    emit_past_spans,
    fail_span,
    record_generation,
    start_span,
    within_span,
)
from mlx_manager.mlx_server.protocols.base import Request
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.services.trace_content import OutputRecorder, input_attributes
from mlx_manager.mlx_server.types import (
    ChatRequest,
    ChoiceFinished,
    Completed,
    GenerationEvent,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)

_DELTAS = (TextDelta, ReasoningDelta, RefusalDelta, ToolCallStarted, ToolCallDelta)

Attributes = dict[str, AttributeValue]


@contextmanager
def traced(request: Request, with_content: bool = False) -> Iterator["Trace"]:
    """Traces the block, which yields the request's events. A block that is left early means the client disconnected.

    The span holds the contents of request and answer only `with_content`.
    """
    record = request.record
    span = start_span(f"{_operation(request)} {request.model}", _request_attributes(request), record.began_ns)
    output = OutputRecorder() if with_content and span.is_recording() else None
    trace = Trace(record, output, partial(within_span, span))
    try:
        yield trace
    except (GeneratorExit, asyncio.CancelledError):
        record.client_left = True
        raise
    except Exception as exc:
        record.error = exc
        raise
    finally:
        record.ended = time.perf_counter()
        record_generation(_operation(request), record)
        if span.is_recording():
            span.set_attributes(_answer_attributes(record))
            if output is not None:
                span.set_attributes(input_attributes(request) | output.attributes())
            if record.error is not None:
                fail_span(span, record.error)
            with within_span(span):
                emit_past_spans(_phases(request, record))
        span.end(record.unix_ns(record.ended))


@dataclass(slots=True)
class Trace:
    """Records the events."""

    record: GenerationRecord
    output: OutputRecorder | None
    current: Callable[[], AbstractContextManager[object]]
    """A context in which new spans become children of the request's span."""
    is_admitted: bool = False
    is_answering: bool = False
    _last_at: dict[int, float] = field(default_factory=dict)

    def observe(self, event: GenerationEvent) -> bool:
        """False for the second `Started`, of a fallback for a model that failed after its own `Started`."""
        record = self.record
        if isinstance(event, _DELTAS):
            self._record_time(event.index)
            if isinstance(event, ToolCallStarted):
                record.tool_calls.append(event.name)
        elif isinstance(event, ChoiceFinished):
            record.finish_reasons.append(event.reason)
        elif isinstance(event, Completed):
            usage = event.usage
            record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
            record.cached_tokens, record.reasoning_tokens = usage.cached_tokens, usage.reasoning_tokens
        elif isinstance(event, Started):
            record.admitted = record.admitted or time.perf_counter()
            is_first, self.is_admitted = not self.is_admitted, True
            return is_first
        self.is_answering = True
        if self.output is not None:
            self.output.add(event)
        return True

    def _record_time(self, choice: int) -> None:
        now = time.perf_counter()
        last_at = self._last_at.get(choice)
        self._last_at[choice] = self.record.last_output = now
        if last_at is not None:
            self.record.output_gaps.append(now - last_at)
        elif self.record.first_output is None:
            self.record.first_output = now


def _operation(request: Request) -> str:
    return "chat" if isinstance(request, ChatRequest) else "text_completion"


def _request_attributes(request: Request) -> Attributes:
    sampling = request.sampling
    attributes: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": _operation(request),
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": request.model,
        "gen_ai.request.stream": request.record.streamed,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.choice.count": request.n if request.n != 1 else None,
        "gen_ai.request.stop_sequences": request.stop or None,
        "gen_ai.output.type": "json" if request.grammar is not None and "json" in request.grammar.kind else None,
        "gen_ai.response.id": request.id,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _answer_attributes(record: GenerationRecord) -> Attributes:
    attributes: dict[str, AttributeValue | None] = {
        "gen_ai.response.model": record.model or None,
        "gen_ai.response.finish_reasons": record.finish_reasons or None,
        "gen_ai.response.time_to_first_chunk": record.time_to_first_output,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": record.reasoning_tokens,
        "mlx_manager.cache_miss.reason": record.miss.reason if record.miss is not None else None,
        "mlx_manager.cache_miss.tokens": record.miss.missed_tokens if record.miss is not None else None,
        "mlx_manager.upstream": record.upstream,
        "mlx_manager.client_left": record.client_left or None,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _phases(request: Request, record: GenerationRecord) -> Iterator[PastSpan]:
    """The phases that the request reached. The worker measures from the request's admission."""

    def phase(name: str, began: float, ended: float, attributes: Attributes) -> PastSpan:
        return PastSpan(name, record.unix_ns(began), record.unix_ns(ended), attributes)

    ended = record.ended if record.ended is not None else time.perf_counter()
    last_output = record.last_output if record.last_output is not None else ended
    if record.leased is not None and record.load_seconds is not None:
        began = record.leased - record.load_seconds
        yield phase("load", began, record.leased, {"gen_ai.request.model": record.model})
    if record.admitted is not None and record.upstream is None:
        prefilled = record.prefilled if record.prefilled is not None else ended
        begun = min(record.admitted + record.queue_seconds, prefilled) if record.prefilled is not None else ended
        yield phase("queue", record.admitted, begun, {})
        if record.prefilled is not None:
            yield phase("prefill", begun, prefilled, _prefill_attributes(record))
    decoding = record.prefilled if record.prefilled is not None else record.first_output
    if decoding is not None:
        yield phase("decode", decoding, last_output, _decode_attributes(record))
    if isinstance(request, ChatRequest) and record.first_output is not None:
        yield phase("parse", record.first_output, last_output, _parse_attributes(record))


def _prefill_attributes(record: GenerationRecord) -> Attributes:
    return {
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "mlx_manager.new_tokens": record.prompt_tokens - record.cached_tokens,
    }


def _decode_attributes(record: GenerationRecord) -> Attributes:
    attributes: dict[str, AttributeValue | None] = {
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.response.finish_reasons": record.finish_reasons or None,
        "gen_ai.response.time_to_first_chunk": record.time_to_first_output,
        "mlx_manager.tokens_per_second": record.tokens_per_second,
    }
    gaps = sorted(record.output_gaps)
    if gaps:
        attributes["mlx_manager.inter_token_p50_seconds"] = gaps[len(gaps) // 2]
        attributes["mlx_manager.inter_token_p95_seconds"] = gaps[len(gaps) * 95 // 100]
    return {name: value for name, value in attributes.items() if value is not None}


def _parse_attributes(record: GenerationRecord) -> Attributes:
    return {
        "mlx_manager.tool_calls": record.tool_calls,
        "mlx_manager.broken_tool_calls": record.broken_calls,
        "gen_ai.usage.reasoning.output_tokens": record.reasoning_tokens,
    }
