"""`GET /metrics` of a real server, after real traffic: what is counted, under which labels, and what is not."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families

from tests.prometheus import Scrape, scrape
from tests.running_server import HANG_SECONDS, RunningServer, chunks_of, eventually, running_server

CHAT = "/v1/chat/completions"
TALKS_ON = {"model": "babbler", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4000, "temperature": 0}
GONE = [{"name": "gone", "kind": "llamacpp", "base_url": "http://127.0.0.1:9"}]
PAGE = Path(__file__).parents[2] / "docs" / "observability.md"


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory, babbler: Path) -> Iterator[RunningServer]:
    """A server with room for one model at a time."""
    folder = tmp_path_factory.mktemp("counted")
    with running_server(
        folder, available_models=babbler, max_models=1, upstreams=json.dumps(GONE), admin_key="secret"
    ) as server:
        yield server


def grows(server: RunningServer, before: Scrape, name: str, by: float, **labels: str) -> None:
    """Waits until the sample has grown by so much: a request is counted when the client may already have its answer."""
    expected = before.value(name, **labels) + by
    eventually(lambda: scrape(server).value(name, **labels), lambda value: value == expected, seconds=10)


def admin(server: RunningServer, verb: str) -> None:
    url = f"{server.url}/admin/models/{verb}"
    assert httpx.post(url, headers={"Authorization": "Bearer secret"}, timeout=HANG_SECONDS).status_code == 200


def test_a_request_is_counted_with_its_tokens_and_times(counted: RunningServer) -> None:
    question = "Count to 5, and do it as you have done it the last time that I asked you to. " * 3
    counted.chat(question)
    eventually(lambda: scrape(counted), lambda now: now.value("prefix_cache_bytes", model="demo") > 0)
    before = scrape(counted)
    usage = counted.chat(question)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0
    grows(counted, before, "requests_total", 1, endpoint=CHAT, model="demo", status="200")
    grows(counted, before, "request_duration_seconds_count", 1, endpoint=CHAT, model="demo")
    grows(counted, before, "prompt_tokens_total", usage["prompt_tokens"], model="demo")
    grows(counted, before, "cached_tokens_total", usage["prompt_tokens_details"]["cached_tokens"], model="demo")
    grows(counted, before, "prefix_cache_hits_total", 1, model="demo")
    grows(counted, before, "completion_tokens_total", usage["completion_tokens"], model="demo")
    for name in ("queue_seconds", "time_to_first_token_seconds"):
        grows(counted, before, f"{name}_count", 1, model="demo")
        assert (
            scrape(counted).value(f"{name}_bucket", model="demo", le="+Inf")
            == before.value(f"{name}_count", model="demo") + 1
        )


def test_every_gap_of_a_stream_is_counted(counted: RunningServer) -> None:
    counted.post(CHAT, TALKS_ON | {"max_tokens": 1})
    before = scrape(counted)
    with counted.stream(CHAT, TALKS_ON | {"max_tokens": 1000}) as payloads:
        pieces = [chunk for chunk in chunks_of(payloads) if chunk["choices"][0]["delta"].get("content")]
    grows(counted, before, "requests_total", 1, endpoint=CHAT, model="babbler", status="200")
    after = scrape(counted)
    gaps, seconds = (
        after.value(f"inter_token_seconds_{what}", model="babbler")
        - before.value(f"inter_token_seconds_{what}", model="babbler")
        for what in ("count", "sum")
    )
    total = after.value("request_duration_seconds_sum", endpoint=CHAT, model="babbler") - before.value(
        "request_duration_seconds_sum", endpoint=CHAT, model="babbler"
    )
    assert gaps == len(pieces) - 1 > 0
    assert 0 < seconds < total


def test_refusals_are_counted_by_status(counted: RunningServer) -> None:
    before = scrape(counted)
    message = [{"role": "user", "content": "Hi"}]
    assert counted.post(CHAT, {"model": "demo"}).status_code == 422
    assert counted.post(CHAT, {"model": "nobody", "messages": message}).status_code == 404
    assert counted.post(CHAT, {"model": "demo", "messages": message, "top_logprobs": 2}).status_code == 400
    assert httpx.get(f"{counted.url}/admin/pool").status_code == 401
    assert httpx.get(f"{counted.url}{CHAT}").status_code == 405
    assert httpx.get(f"{counted.url}/nowhere").status_code == 404
    for endpoint, model, status in (
        (CHAT, "", "422"),
        (CHAT, "other", "404"),
        ("/admin/pool", "", "401"),
        (CHAT, "", "405"),
        ("other", "", "404"),
    ):
        grows(counted, before, "requests_total", 1, endpoint=endpoint, model=model, status=status)
    after = scrape(counted)
    assert after.value("prompt_tokens_total", model="other") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_a_499(counted: RunningServer, stream: bool) -> None:
    counted.post(CHAT, TALKS_ON | {"max_tokens": 1})
    before = scrape(counted)
    asked = httpx.stream("POST", f"{counted.url}{CHAT}", json=TALKS_ON | {"stream": stream}, timeout=0.3)
    with contextlib.suppress(httpx.ReadTimeout), asked as response:
        received = response.iter_lines()
        for _ in range(20):
            next(received)
    grows(counted, before, "requests_total", 1, endpoint=CHAT, model="babbler", status="499")
    assert scrape(counted).value("completion_tokens_total", model="babbler") > before.value(
        "completion_tokens_total", model="babbler"
    )


def test_what_runs_now_can_be_seen(counted: RunningServer) -> None:
    with counted.stream(CHAT, TALKS_ON) as payloads:
        next(payloads)
        now = eventually(lambda: scrape(counted), lambda now: now.value("running_sequences", model="babbler") == 1)
        assert now.value("waiting_sequences", model="babbler") == 0
        assert now.value("batch_size", model="babbler") == 1
        assert now.value("kv_cache_bytes", model="babbler") > 0
        assert now.value("mlx_active_bytes", model="babbler") > now.value("weights_bytes", model="babbler") > 0
    worker = counted.worker()
    resident = now.value("process_resident_memory_bytes", process="worker", model="babbler")
    assert 0.5 < resident / worker.memory_info().rss < 2
    assert now.value("process_resident_memory_bytes", process="api", model="") > 10_000_000
    api_descriptors = now.value("process_open_descriptors", process="api", model="")
    assert abs(api_descriptors - psutil.Process(counted.process.pid).num_fds()) < 10
    assert now.value("models_loaded") == 1
    assert now.value("memory_budget_bytes") > now.value("memory_used_bytes") > 0
    assert (now.value("draining"), now.value("upstream_up", upstream="gone")) == (0, 0)
    eventually(lambda: scrape(counted), lambda now: now.value("running_sequences", model="babbler") == 0)


def test_loads_and_evictions_are_counted(counted: RunningServer) -> None:
    admin(counted, "demo/load")
    before = scrape(counted)
    admin(counted, "babbler/load")
    admin(counted, "babbler/unload")
    admin(counted, "demo/load")
    grows(counted, before, "model_load_seconds_count", 1, model="babbler")
    grows(counted, before, "model_load_seconds_count", 1, model="demo")
    grows(counted, before, "model_evictions_total", 1, model="demo", reason="room")
    grows(counted, before, "model_evictions_total", 1, model="babbler", reason="asked")


def test_a_killed_worker_is_counted(counted: RunningServer) -> None:
    counted.post(CHAT, TALKS_ON | {"max_tokens": 1})
    before = scrape(counted)
    with counted.stream(CHAT, TALKS_ON) as payloads:
        next(payloads)
        counted.worker().kill()
        assert "engine_failed" in list(payloads)[-1]
    grows(counted, before, "worker_restarts_total", 1, model="babbler")
    grows(counted, before, "requests_total", 1, endpoint=CHAT, model="babbler", status="200")


def test_labels_stay_few_whatever_is_asked_for(counted: RunningServer) -> None:
    before = scrape(counted)
    with httpx.Client(base_url=counted.url) as client:
        for number in range(300):
            body = {"model": f"bogus-{number}", "messages": [{"role": "user", "content": "Hi"}]}
            assert client.post(CHAT, json=body).status_code == 404
            assert client.get(f"/bogus/{number}").status_code == 404
            assert client.get(f"/v1/models/bogus-{number}").status_code == 404
    grows(counted, before, "requests_total", 300, endpoint=CHAT, model="other", status="404")
    grows(counted, before, "requests_total", 300, endpoint="other", model="", status="404")
    grows(counted, before, "requests_total", 300, endpoint="/v1/models/{model_id}", model="", status="404")
    after = scrape(counted)
    assert after.labels("model") == {"", "other", "demo", "babbler"}
    assert after.labels("endpoint") - before.labels("endpoint") <= {"other", "/v1/models/{model_id}", CHAT}


@pytest.mark.parametrize("version", ["1.0.0", "none"])
def test_who_accepts_open_metrics_gets_it(counted: RunningServer, version: str) -> None:
    response = httpx.get(
        f"{counted.url}/metrics", headers={"Accept": f"application/openmetrics-text;version={version},*/*;q=0.1"}
    )
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert "mlx_server_requests" in {family.name for family in open_metrics_families(response.text)}


def test_the_page_names_every_metric_and_no_other(counted: RunningServer) -> None:
    exported = set(re.findall(r"^# TYPE (\S+)", httpx.get(f"{counted.url}/metrics").text, re.MULTILINE))
    documented = re.findall(r"^\| `(mlx_server_\w+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(exported) == sorted(documented)


def test_what_is_refused_before_the_routes_counts_under_its_path(counted: RunningServer) -> None:
    before = scrape(counted)
    for path in ("/v1/completions", "/v1/nothing"):
        stranger = httpx.post(f"{counted.url}{path}", headers={"Host": "evil.example"}, json={})
        assert stranger.status_code == 421
    grows(counted, before, "requests_total", 1, endpoint="/v1/completions", model="", status="421")
    grows(counted, before, "requests_total", 1, endpoint="other", model="", status="421")
