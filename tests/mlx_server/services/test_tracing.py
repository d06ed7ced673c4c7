"""Spans of requests and loads, as LogFire gets them."""

from collections.abc import AsyncIterator

import httpx
import logfire
import pytest
from fastapi import FastAPI
from logfire.testing import TestExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import StatusCode

from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.main import create_app, lifespan

pytestmark = pytest.mark.anyio

BODY = {"model": "demo", "messages": [{"role": "user", "content": "Count to 4"}], "temperature": 0, "seed": 5}


@pytest.fixture(scope="module")
def exporter() -> TestExporter:
    exporter = TestExporter()
    logfire.configure(
        send_to_logfire=False, console=False, additional_span_processors=[SimpleSpanProcessor(exporter)], metrics=False
    )
    return exporter


@pytest.fixture(scope="module")
async def app(exporter: TestExporter, anyio_backend: str) -> AsyncIterator[FastAPI]:
    app = create_app(MLXServerSettings(logfire_enabled=False))
    async with lifespan(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        yield client


def spans(exporter: TestExporter, name: str) -> list[ReadableSpan]:
    """Those that have ended; LogFire also exports a placeholder when a span starts."""
    ended = [span for span in exporter.exported_spans if attributes(span).get("logfire.span_type") != "pending_span"]
    return [span for span in ended if span.name == name]


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_is_one_span_in_genai_terms(
    client: httpx.AsyncClient, exporter: TestExporter, stream: bool
) -> None:
    exporter.clear()
    response = await client.post("/v1/chat/completions", json=BODY | {"stream": stream, "max_tokens": 50})
    assert response.status_code == 200
    (span,) = spans(exporter, "chat_completion")
    recorded = attributes(span)
    assert recorded["gen_ai.operation.name"] == "chat"
    assert recorded["gen_ai.request.model"] == "demo"
    assert recorded["gen_ai.request.stream"] is stream
    assert recorded["gen_ai.request.max_tokens"] == 50
    assert recorded["gen_ai.request.temperature"] == 0
    assert recorded["gen_ai.request.seed"] == 5
    assert str(recorded["gen_ai.response.id"]) in response.text
    assert recorded["gen_ai.response.finish_reasons"] == ("stop",)
    assert recorded["gen_ai.usage.output_tokens"] == 11
    assert isinstance(recorded["gen_ai.usage.input_tokens"], int)
    first = recorded["gen_ai.response.time_to_first_chunk"]
    assert isinstance(first, float)
    assert span.end_time is not None
    assert span.start_time is not None
    assert 0 < first <= (span.end_time - span.start_time) / 1e9
    assert [event.name for event in span.events] == ["admitted", "completion_finished"]
    assert "Count to" not in str(recorded)


async def test_a_completion_is_a_span_too(client: httpx.AsyncClient, exporter: TestExporter) -> None:
    exporter.clear()
    await client.post("/v1/completions", json={"model": "demo", "prompt": "Once", "max_tokens": 3, "echo": True})
    (span,) = spans(exporter, "completion")
    assert attributes(span)["gen_ai.operation.name"] == "text_completion"
    assert attributes(span)["gen_ai.response.finish_reasons"] == ("length",)


async def test_a_refusal_is_an_error_on_the_span(client: httpx.AsyncClient, exporter: TestExporter) -> None:
    exporter.clear()
    response = await client.post("/v1/chat/completions", json=BODY | {"model": "nobody"})
    assert response.status_code == 404
    (span,) = spans(exporter, "chat_completion")
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "ModelNotFound"


async def test_a_load_is_a_span(exporter: TestExporter, tmp_path_factory: pytest.TempPathFactory) -> None:
    exporter.clear()
    empty = tmp_path_factory.mktemp("empty")
    app = create_app(MLXServerSettings(logfire_enabled=False, default_model=str(empty)))
    async with lifespan(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=BODY | {"model": empty.name})).status_code == 503
    loads = {
        attributes(span)["gen_ai.request.model"]: span.status.status_code for span in spans(exporter, "model_load")
    }
    assert loads == {"demo": StatusCode.UNSET, empty.name: StatusCode.ERROR}
