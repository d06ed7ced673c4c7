"""Spans of requests and of what happens to models, and GenAI metrics, as LogFire gets them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import logfire
import pytest
from fastapi import FastAPI
from logfire.testing import TestExporter
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import StatusCode

from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.main import create_app, lifespan
from tests.running_server import HANG_SECONDS
from tests.small_models import make_random_llama

pytestmark = pytest.mark.anyio

BODY = {"model": "demo", "messages": [{"role": "user", "content": "Count to 4"}], "temperature": 0, "seed": 5}
LONG = BODY | {"messages": [{"role": "user", "content": "Tell me a story about a dog and a cat. " * 4}]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture(scope="module")
def exporter(reader: InMemoryMetricReader) -> TestExporter:
    exporter = TestExporter()
    logfire.configure(
        send_to_logfire=False,
        console=False,
        additional_span_processors=[SimpleSpanProcessor(exporter)],
        metrics=logfire.MetricsOptions(additional_readers=[reader]),
    )
    return exporter


@pytest.fixture(scope="module")
async def app(exporter: TestExporter, anyio_backend: str) -> AsyncIterator[FastAPI]:
    app = create_app(MLXServerSettings(logfire_enabled=False))
    async with lifespan(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", timeout=HANG_SECONDS)


def spans(exporter: TestExporter, name: str) -> list[ReadableSpan]:
    """Those that have ended; LogFire also exports a placeholder when a span starts."""
    ended = [span for span in exporter.exported_spans if attributes(span).get("logfire.span_type") != "pending_span"]
    return [span for span in ended if span.name == name]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def children(exporter: TestExporter, parent: ReadableSpan) -> dict[str, ReadableSpan]:
    ids = (parent.context.trace_id, parent.context.span_id) if parent.context else None
    return {
        span.name: span
        for span in exporter.exported_spans
        if span.parent is not None and (span.parent.trace_id, span.parent.span_id) == ids
        and attributes(span).get("logfire.span_type") != "pending_span"
    }  # fmt: skip


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_is_one_span_in_genai_terms(
    client: httpx.AsyncClient, exporter: TestExporter, stream: bool
) -> None:
    exporter.clear()
    response = await client.post("/v1/chat/completions", json=BODY | {"stream": stream, "max_tokens": 50})
    assert response.status_code == 200
    (span,) = spans(exporter, "chat demo")
    recorded = attributes(span)
    assert recorded["gen_ai.operation.name"] == "chat"
    assert recorded["gen_ai.provider.name"] == "mlx"
    assert recorded["gen_ai.request.model"] == recorded["gen_ai.response.model"] == "demo"
    assert recorded["gen_ai.request.stream"] is stream
    assert recorded["gen_ai.request.max_tokens"] == 50
    assert recorded["gen_ai.request.temperature"] == 0
    assert recorded["gen_ai.request.seed"] == 5
    assert recorded["gen_ai.response.id"] in response.text
    assert recorded["gen_ai.response.finish_reasons"] == ("stop",)
    assert recorded["gen_ai.usage.output_tokens"] == 11
    began, ended = times(span)
    assert 0 < recorded["gen_ai.response.time_to_first_chunk"] <= (ended - began) / 1e9
    assert "Count to" not in str(exporter.exported_spans_as_dict())


async def test_phases_are_children_of_the_request_one_after_the_other(
    client: httpx.AsyncClient, exporter: TestExporter
) -> None:
    usages = []
    for _ in range(2):
        exporter.clear()
        usages.append(
            (await client.post("/v1/chat/completions", json=LONG | {"max_tokens": 99, "ignore_eos": True})).json()[
                "usage"
            ]
        )
    (span,) = spans(exporter, "chat demo")
    phases = children(exporter, span)
    assert set(phases) == {"queue", "prefill", "decode", "parse"}
    began, ended = times(span)
    assert began <= times(phases["queue"])[0]
    assert times(phases["decode"])[1] <= ended
    moments = [*times(phases["queue"]), *times(phases["prefill"]), *times(phases["decode"])]
    assert moments == sorted(moments)
    prefill, decode = attributes(phases["prefill"]), attributes(phases["decode"])
    cached = usages[1]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    assert prefill["gen_ai.usage.input_tokens"] == usages[1]["prompt_tokens"]
    assert prefill["gen_ai.usage.cache_read.input_tokens"] == cached
    assert prefill["mlx_manager.new_tokens"] == usages[1]["prompt_tokens"] - cached
    assert "mlx_manager.cache_miss.reason" not in attributes(span)
    assert decode["gen_ai.usage.output_tokens"] == 99
    assert decode["gen_ai.response.finish_reasons"] == ("length",)
    seconds = (times(phases["decode"])[1] - times(phases["decode"])[0]) / 1e9
    assert 0 < decode["mlx_manager.inter_token_p50_seconds"] <= decode["mlx_manager.inter_token_p95_seconds"] < seconds
    assert decode["mlx_manager.tokens_per_second"] > 98 / seconds
    assert attributes(phases["parse"])["mlx_manager.broken_tool_calls"] == 0


async def test_why_a_prompt_missed_the_cache_is_on_its_span(client: httpx.AsyncClient, exporter: TestExporter) -> None:
    question = {"role": "user", "content": "Which day is it, and which was it the day before? " * 4}
    for clock in ("12:01", "12:02"):
        exporter.clear()
        system = {"role": "system", "content": f"It is {clock}. Be kind to all who ask you for the day."}
        await client.post("/v1/chat/completions", json=BODY | {"messages": [system, question]})
    (span,) = spans(exporter, "chat demo")
    assert attributes(span)["mlx_manager.cache_miss.reason"] == "system"
    assert attributes(span)["mlx_manager.cache_miss.tokens"] > 32


async def test_tool_calls_are_told_by_the_parse_span(client: httpx.AsyncClient, exporter: TestExporter) -> None:
    exporter.clear()
    body = BODY | {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 60}
    choice = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert choice["message"]["tool_calls"]
    (span,) = spans(exporter, "chat demo")
    parse = attributes(children(exporter, span)["parse"])
    assert parse["mlx_manager.tool_calls"] == ("get_weather",) * len(choice["message"]["tool_calls"])


async def test_a_completion_is_a_span_too(client: httpx.AsyncClient, exporter: TestExporter) -> None:
    exporter.clear()
    await client.post("/v1/completions", json={"model": "demo", "prompt": "Once", "max_tokens": 3, "echo": True})
    (span,) = spans(exporter, "text_completion demo")
    assert attributes(span)["gen_ai.operation.name"] == "text_completion"
    assert attributes(span)["gen_ai.response.finish_reasons"] == ("length",)
    assert "parse" not in children(exporter, span)


async def test_a_refusal_is_an_error_on_the_span(client: httpx.AsyncClient, exporter: TestExporter) -> None:
    exporter.clear()
    response = await client.post("/v1/chat/completions", json=BODY | {"model": "nobody"})
    assert response.status_code == 404
    (span,) = spans(exporter, "chat nobody")
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "ModelNotFound"
    assert children(exporter, span) == {}


async def test_a_client_that_leaves_is_told_with_the_tokens_it_cost(app: FastAPI, exporter: TestExporter) -> None:
    """Left by closing the events, as `respond` does: httpx's ASGI transport does not send a part of an answer."""
    from mlx_manager.mlx_server.protocols.chat import to_request
    from mlx_manager.mlx_server.schemas.openai import ChatCompletionRequest

    exporter.clear()
    request = to_request(ChatCompletionRequest.model_validate(LONG), 500)
    events = app.state.server.inference.generate(request)
    for _ in range(5):
        await anext(events)
    await events.aclose()
    (span,) = spans(exporter, "chat demo")
    recorded = attributes(span)
    assert recorded["mlx_manager.client_left"] is True
    assert recorded["gen_ai.usage.output_tokens"] >= 3
    assert recorded["gen_ai.usage.input_tokens"] > 0
    assert span.status.status_code is StatusCode.UNSET
    assert {"queue", "prefill", "decode"} <= set(children(exporter, span))


async def test_loads_evictions_and_deaths_are_spans(
    exporter: TestExporter, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("models")
    make_random_llama(folder / "babbler")
    (folder / "empty").mkdir()
    exporter.clear()
    names = f"{folder / 'babbler'},{folder / 'empty'}"
    settings = MLXServerSettings(logfire_enabled=False, available_models=names, max_models=1)
    app = create_app(settings)
    async with lifespan(app), client_of(app) as client:
        assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 200
        answers = [
            await client.post("/v1/chat/completions", json=BODY | {"model": name, "max_tokens": 2})
            for name in ("empty", "babbler")
        ]
        assert [answer.status_code for answer in answers] == [503, 200]
        engine = app.state.server.pool.loaded("babbler").engine
        engine._kill()
        await engine.wait_until_exited()
    loads = {attributes(span)["gen_ai.request.model"]: span for span in reversed(spans(exporter, "model_load"))}
    assert {name: span.status.status_code for name, span in loads.items()} == {
        "demo": StatusCode.UNSET, "babbler": StatusCode.UNSET, "empty": StatusCode.ERROR
    }  # fmt: skip
    (asking,) = spans(exporter, "chat babbler")
    assert children(exporter, asking)["model_load"] is loads["babbler"]
    assert "load" in children(exporter, asking)
    (evicted,) = [span for span in spans(exporter, "model_evicted") if "gen_ai.request.model" in attributes(span)]
    told = attributes(evicted)
    assert (told["mlx_manager.evicted_model"], told["gen_ai.request.model"]) == ("demo", "babbler")
    (died,) = spans(exporter, "worker_died")
    assert "SIGKILL" in attributes(died)["mlx_manager.reason"]
    assert died.parent is None  # and not the request that had the model loaded, which is over


async def test_content_is_on_the_span_when_it_is_asked_for(exporter: TestExporter, anyio_backend: str) -> None:
    exporter.clear()
    app = create_app(MLXServerSettings(logfire_enabled=False, trace_content=True))
    async with lifespan(app), client_of(app) as client:
        body = BODY | {"tools": [WEATHER]}
        answer = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]
        text = (await client.post("/v1/completions", json={"model": "demo", "prompt": "Once", "max_tokens": 3})).json()
    (chat,), (completion,) = spans(exporter, "chat demo"), spans(exporter, "text_completion demo")
    recorded = {name: json.loads(attributes(chat)[f"gen_ai.{name}"]) for name in ("input.messages", "output.messages")}
    assert recorded["input.messages"] == [{"role": "user", "parts": [{"type": "text", "content": "Count to 4"}]}]
    (message,) = recorded["output.messages"]
    assert message["finish_reason"] == "stop"
    assert [part["content"] for part in message["parts"] if part["type"] == "text"] == [answer["content"]]
    assert json.loads(attributes(chat)["gen_ai.tool.definitions"])[0]["name"] == "get_weather"
    assert text["choices"][0]["text"] in attributes(completion)["gen_ai.output.messages"]


async def test_metrics_have_the_names_and_attributes_of_the_conventions(
    client: httpx.AsyncClient, reader: InMemoryMetricReader
) -> None:
    await client.post("/v1/chat/completions", json=BODY)
    before = metric_points(reader)
    assert set(before) == {
        "gen_ai.client.token.usage",
        "gen_ai.client.operation.duration",
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
    }
    usage = (await client.post("/v1/chat/completions", json=BODY)).json()["usage"]
    await client.post("/v1/chat/completions", json=BODY | {"model": "nobody"})
    after = metric_points(reader)
    assert grown(before, after, "gen_ai.client.token.usage", "output") == usage["completion_tokens"]
    assert grown(before, after, "gen_ai.client.token.usage", "input") == usage["prompt_tokens"]
    assert 0 < grown(before, after, "gen_ai.server.time_to_first_token") < 60
    assert 0 <= grown(before, after, "gen_ai.server.time_per_output_token") < 60
    assert count(after) == count(before) + 1
    models = {point.attributes.get("gen_ai.request.model") for point in after["gen_ai.server.request.duration"]}
    assert "demo" in models
    assert "nobody" not in models


def metric_points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    found = reader.get_metrics_data()
    assert found is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in found.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name.startswith("gen_ai.")
    }


def grown(before: dict[str, list[Any]], after: dict[str, list[Any]], name: str, token_type: str | None = None) -> float:
    """By how much the sum of the demo model's points has grown."""
    sums = [
        sum(
            point.sum
            for point in points[name]
            if point.attributes["gen_ai.request.model"] == "demo"
            and token_type in (None, point.attributes.get("gen_ai.token.type"))
        )
        for points in (before, after)
    ]
    return float(sums[1] - sums[0])


def count(points: dict[str, list[Any]]) -> int:
    """Answers of the demo model whose time per token was recorded."""
    measured = points["gen_ai.server.time_per_output_token"]
    return sum(point.count for point in measured if point.attributes["gen_ai.request.model"] == "demo")
