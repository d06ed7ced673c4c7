"""Traces over the wire: a collector on loopback that answers, one that is slow, and one that is not there."""

import json
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.collector import collector
from tests.running_server import HANG_SECONDS, running_server


def test_requests_arrive_at_an_otlp_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as receiving:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiving.url)
        with running_server(tmp_path) as server:
            assert "LogFire instrumentation enabled" in server.log.read_text()
            answer = server.chat("Count to 3")
        spans = {span.name: span for span in receiving.spans}
        chat, http, load = spans["chat demo"], spans["POST /v1/chat/completions"], spans["model_load"]
    recorded = {pair.key: pair.value for pair in chat.attributes}
    assert recorded["gen_ai.response.id"].string_value == answer["id"]
    assert recorded["gen_ai.usage.output_tokens"].int_value == answer["usage"]["completion_tokens"]
    assert (chat.trace_id, chat.parent_span_id) == (http.trace_id, http.span_id)
    phases = {span.name for span in receiving.spans if span.parent_span_id == chat.span_id}
    assert phases == {"queue", "prefill", "decode", "parse"}
    assert load.end_time_unix_nano > load.start_time_unix_nano
    assert {"gen_ai.client.token.usage", "gen_ai.server.time_to_first_token"} <= receiving.metrics
    assert "Count to" not in str(receiving.spans)


def test_a_clients_trace_goes_on_in_spans_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace_id, parent_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {
        "traceparent": f"00-{trace_id}-{parent_id}-01",
        "x-request-id": "traced.1",
        "baggage": "secret=bag",
        "User-Agent": "tester",
    }
    body = {"model": "demo", "prompt": "Once", "max_tokens": 3}
    with collector() as receiving:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiving.url)
        with running_server(tmp_path, log_format="json") as server:
            assert httpx.post(f"{server.url}/v1/completions?key=secret", json=body, headers=headers).status_code == 200
            for path in ("/health", "/ready", "/metrics", "/v1/models/nobody", "/nowhere"):
                httpx.get(f"{server.url}{path}")
            server.wait_for_log("GET  /nowhere")
            log = [json.loads(line) for line in server.log.read_text().splitlines()]
    servers = {span.name: span for span in receiving.spans if span.kind == Span.SpanKind.SPAN_KIND_SERVER}
    assert set(servers) == {"POST /v1/completions", "GET /v1/models/{model_id}", "GET"}
    http = servers["POST /v1/completions"]
    assert (http.trace_id.hex(), http.parent_span_id.hex()) == (trace_id, parent_id)
    recorded = {pair.key: pair.value.string_value or pair.value.int_value for pair in http.attributes}
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/completions",
        "client.address": "127.0.0.1",
        "user_agent.original": "tester",
        "mlx_manager.request_id": "traced.1",
    }
    assert expected.items() <= recorded.items()
    assert "secret" not in str(receiving.spans)
    (line,) = [line for line in log if line["logger"] == "mlx_manager.access" and line["request_id"] == "traced.1"]
    assert (line["trace_id"], line["span_id"]) == (trace_id, http.span_id.hex())


def test_requests_arrive_at_logfire_with_a_token(tmp_path: Path) -> None:
    with collector() as receiving:
        (tmp_path / "pyproject.toml").write_text(f'[tool.logfire]\nbase_url = "{receiving.url}"\n')
        with running_server(tmp_path, logfire_token="pylf_v1_us_token") as server:
            server.chat("Count to 3")
        assert {"chat demo", "POST /v1/chat/completions"} <= {span.name for span in receiving.spans}


def test_a_request_over_an_upstream_is_one_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as receiving:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiving.url)
        with running_server(tmp_path) as behind:
            upstreams = json.dumps([{"name": "far", "kind": "openai", "base_url": behind.url}])
            with running_server(tmp_path, upstreams=upstreams) as front:
                front.post("/v1/completions", {"model": "far/demo", "prompt": "Once", "max_tokens": 3})
    spans = {span.name: span for span in receiving.spans}
    asked, answering = spans["text_completion far/demo"], spans["text_completion demo"]
    assert asked.trace_id == answering.trace_id
    assert {span.name for span in receiving.spans if span.parent_span_id == asked.span_id} == {
        "decode",
        "POST /v1/completions",
    }


@pytest.mark.parametrize("fault", ["dead", "slow"])
def test_collector_that_fails_loses_no_request_and_holds_up_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with collector(delay_seconds=60) as hanging:
        url = hanging.url if fault == "slow" else "http://127.0.0.1:9"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        with running_server(tmp_path) as server:
            for _ in range(10):
                assert server.chat("Count to 3")["choices"][0]["finish_reason"] == "stop"
            server.process.terminate()
            assert server.process.wait(HANG_SECONDS) == 0
