"""The span and the metrics of one embeddings or rerank request, by OpenTelemetry's GenAI conventions."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from mlx_manager.mlx_server.observability import (
    PastSpan,
    emit_past_spans,
    fail_span,
    record_generation,
    start_span,
    within_span,
)
from mlx_manager.mlx_server.records import GenerationRecord


@asynccontextmanager
async def traced(operation: str, model: str, record: GenerationRecord) -> AsyncIterator[None]:
    """Record and span end with the block: when it completes, fails or is cancelled."""
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": model,
    }
    span = start_span(f"{operation} {model}", attributes, record.began_ns)
    try:
        with within_span(span):
            yield
    except asyncio.CancelledError:
        record.client_left = True
        raise
    except Exception as exc:
        record.error = exc
        raise
    finally:
        record.ended = time.perf_counter()
        record_generation(operation, record)
        if span.is_recording():
            if record.model:
                span.set_attribute("gen_ai.response.model", record.model)
            span.set_attribute("gen_ai.usage.input_tokens", record.prompt_tokens)
            if record.error is not None:
                fail_span(span, record.error)
            with within_span(span):
                emit_past_spans(_phases(record, record.ended))
        span.end(record.unix_ns(record.ended))


def _phases(record: GenerationRecord, ended: float) -> Iterator[PastSpan]:
    """The phases that the request reached: loading the model, waiting for the first batch, encoding."""

    def phase(name: str, began: float, until: float) -> PastSpan:
        return PastSpan(name, record.unix_ns(began), record.unix_ns(until), {})

    if record.leased is not None and record.load_seconds is not None:
        yield phase("load", record.leased - record.load_seconds, record.leased)
    if record.admitted is not None:
        begun = min(record.admitted + record.queue_seconds, ended)
        yield phase("queue", record.admitted, begun)
        yield phase("encode", begun, record.prefilled if record.prefilled is not None else ended)
