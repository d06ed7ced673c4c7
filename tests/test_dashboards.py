"""The dashboards and queries of docs/observability.md: all that they name is there, and each query has an answer."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_manager.mlx_server.observability import (
    Metrics,
    ModelReading,
    ProcessReading,
    ServerReading,
    exposition,
)
from mlx_manager.mlx_server.records import Exchange, GenerationRecord
from tests.collector import Collector, collector
from tests.faulty_upstream import DONE, Answer, faulty_upstream, piece
from tests.logfire_records import Row, ask, records_of
from tests.mlx_server.engine.embedding.tiny import EMBEDDERS, RERANKERS, make_model
from tests.running_server import RunningServer, running_server

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "observability.md").read_text("utf-8")
LOGFIRE = json.loads((DOCS / "dashboards" / "logfire.json").read_text("utf-8"))
GRAFANA = json.loads((DOCS / "dashboards" / "grafana.json").read_text("utf-8"))

PAGE_QUERIES = {
    section.partition("\n")[0]: query
    for section in PAGE.split("\n### ")
    for query in re.findall(r"```sql\n(.*?)```", section, re.DOTALL)
}
PANELS: dict[str, dict[str, Any]] = {name: panel["spec"] for name, panel in LOGFIRE["spec"]["panels"].items()}
GRAFANA_PANELS = [panel for panel in GRAFANA["panels"] if panel["type"] != "row"]

LONG = "Tell me a story about a dog and a cat. " * 4
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
ALL_PARAMETERS = {
    "top_p": 0.9,
    "top_k": 20,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "seed": 5,
    "n": 2,
    "stop": ["dragon"],
    "max_tokens": 9,
}
TALKS_ON = {"model": "babbler", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4000, "temperature": 0}
CHAT = "/v1/chat/completions"


def use(server: RunningServer) -> None:
    """All that spans tell of: answers, refusals, a load that fails, an eviction, a client that leaves, a death."""
    server.chat(LONG)
    server.chat(LONG, **ALL_PARAMETERS)
    server.chat("What is the weather?", tools=[WEATHER], tool_choice="required", max_tokens=60)
    server.chat("Anna is 7", response_format={"type": "json_object"}, max_tokens=5)
    server.post("/v1/completions", {"model": "far/away", "prompt": "Once"})
    for model, status in (("nobody", 404), ("empty", 503)):
        message = [{"role": "user", "content": "Hi"}]
        assert server.post(CHAT, {"model": model, "messages": message}).status_code == status
    with server.stream(CHAT, TALKS_ON) as payloads:
        for _ in range(10):
            next(payloads)
    server.wait_for_log("499 POST")
    with server.stream(CHAT, TALKS_ON) as payloads:
        next(payloads)
        server.worker().kill()
        assert "engine_failed" in list(payloads)[-1]
    assert server.post(CHAT, TALKS_ON | {"max_tokens": 1}).status_code == 200  # a model to let go at the end


def read_texts(server: RunningServer) -> None:
    assert server.post("/v1/embeddings", {"model": "embedder", "input": "w1"}).status_code == 200
    ranked = server.post("/v1/rerank", {"model": "reranker", "query": "w1", "documents": ["w2"]})
    assert ranked.status_code == 200


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, babbler: Path) -> Iterator[Collector]:
    folder = tmp_path_factory.mktemp("told")
    (folder / "empty").mkdir()
    make_model(folder / "embedding" / "embedder", EMBEDDERS["bert"])
    make_model(folder / "embedding" / "reranker", RERANKERS["bert"])
    answer = Answer((piece("upon "), piece("a time", finish_reason="stop"), DONE))
    with contextlib.ExitStack() as stack:
        receiving = stack.enter_context(collector())
        upstream = stack.enter_context(faulty_upstream({"away": answer}))
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiving.url)
        with running_server(
            folder,
            available_models=f"{babbler},{folder / 'empty'}",
            max_models=1,
            trace_content=True,
            upstreams=json.dumps([{"name": "far", "kind": "openai", "base_url": upstream.url}]),
        ) as server:
            use(server)
        with running_server(folder, models_dir=folder / "embedding") as server:
            read_texts(server)
        yield receiving


@pytest.fixture(scope="module")
def records(told: Collector) -> list[Row]:
    return records_of(told.scopes)


def query_of(panel: dict[str, Any]) -> str:
    query: str = panel["queries"][0]["spec"]["plugin"]["spec"]["query"]
    return query


QUERIES = PAGE_QUERIES | {name: query_of(panel) for name, panel in PANELS.items()}


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_has_an_answer_in_each_column(records: list[Row], name: str) -> None:
    rows = ask(records, QUERIES[name])
    assert rows
    empty = [column for column in rows[0] if all(row[column] is None for row in rows)]
    assert empty == []


@pytest.mark.parametrize("name", QUERIES)
def test_every_name_in_a_query_is_one_that_the_server_tells(records: list[Row], name: str) -> None:
    query = QUERIES[name]
    scopes = re.findall(r"otel_scope_name = '([^']*)'", query)
    assert set(scopes) == {record["otel_scope_name"] for record in records}
    attributes = set(re.findall(r"->>'([^']*)'", query))
    assert attributes <= {attribute for record in records for attribute in record["attributes"]}
    assert set(re.findall(r"span_name = '([^']*)'", query)) <= {record["span_name"] for record in records}
    for attribute, values in re.findall(r"->>'([^']*)'\s+(?:=|IN)\s+(\([^)]*\)|'[^']*')", query):
        told = {json.dumps(record["attributes"].get(attribute)).strip('"') for record in records}
        assert set(re.findall(r"'([^']*)'", values)) <= told


def test_the_page_has_the_queries_people_ask_for(records: list[Row]) -> None:
    demo = [record["attributes"] for record in records if record["span_name"] == "chat demo"]
    waits = [one["gen_ai.response.time_to_first_chunk"] for one in demo]
    first_tokens = {row["model"]: row for row in ask(records, PAGE_QUERIES["p95 TTFT by model"])}
    assert set(first_tokens) == {"demo", "babbler", "far/away"}
    assert sorted(waits)[-2] <= first_tokens["demo"]["p95_seconds"] <= max(waits)
    assert first_tokens["demo"]["answers"] == len(waits) == 4
    minutes = [row for row in ask(records, PAGE_QUERIES["Tokens per minute by model"]) if row["model"] == "demo"]
    for kind, column in (("input", "prompt_tokens"), ("output", "completion_tokens")):
        assert sum(row[column] for row in minutes) == sum(one[f"gen_ai.usage.{kind}_tokens"] for one in demo) > 0
    (eviction,) = ask(records, PAGE_QUERIES["Who evicts whom"])
    assert (eviction["evicting_model"], eviction["evicted_model"], eviction["evictions"]) == ("babbler", "demo", 1)


def tabled(heading: str) -> set[str]:
    """The names in the first column of the section's table."""
    section = PAGE.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]*)`", cell)}


def test_the_page_names_every_span_attribute_and_metric_and_no_other(told: Collector, records: list[Row]) -> None:
    names = {
        re.sub(r"^(chat|text_completion|embeddings|rerank) .*", r"\1 MODEL", record["span_name"]) for record in records
    }
    assert {re.sub(r"^(GET|POST) .*", "METHOD ROUTE", name) for name in names} == tabled("Spans")
    assert {attribute for record in records for attribute in record["attributes"]} == tabled("Attributes")
    assert {name for name in told.metrics if name.startswith("gen_ai.")} == tabled("GenAI metrics")


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_of_logfire_reads_the_columns_of_its_query(records: list[Row], name: str) -> None:
    (query,) = PANELS[name]["queries"]
    plugin = query["spec"]["plugin"]
    kinds = (PANELS[name]["plugin"]["kind"], query["kind"], plugin["kind"])
    if kinds == ("Table", "NonTimeSeriesQuery", "LogfireNonTimeSeriesQuery"):
        assert set(plugin["spec"]) == {"query"}
        return
    assert kinds == ("TimeSeriesChart", "TimeSeriesQuery", "LogfireTimeSeriesQuery")
    columns = {"x", plugin["spec"]["groupBy"], *plugin["spec"]["metrics"]}
    assert columns == set(ask(records, plugin["spec"]["query"])[0])


def test_the_panels_of_logfire_have_a_place_each() -> None:
    places = [item for grid in LOGFIRE["spec"]["layouts"] for item in grid["spec"]["items"]]
    assert sorted(item["content"]["$ref"] for item in places) == sorted(f"#/spec/panels/{name}" for name in PANELS)
    assert all(item["x"] + item["width"] <= 24 for item in places)
    assert LOGFIRE["spec"]["variables"] == []  # one that is called resolution would hide LogFire's own


def exported() -> dict[str, set[str]]:
    """The samples of `/metrics`, with their labels."""
    metrics = Metrics(lambda model_id: True)
    generation = GenerationRecord(model="demo", admitted=0.0, prefilled=0.0, first_output=0.0)
    metrics.exchange_ended(Exchange("id", "POST", "/", status=200, generation=generation))
    metrics.model_loaded("demo", 1.0)
    metrics.load_failed("demo")
    metrics.model_evicted("demo", "room")
    metrics.worker_died("demo")
    reading = ServerReading([ModelReading("demo")], [ProcessReading("api", "", 1, 1)], {"far": True}, 1, 1, 1, False)
    text, _ = exposition(metrics.families(reading), "")
    families = text_string_to_metric_families(text.decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


EXPORTED = exported()


def parts(expression: str) -> list[promql_parser.Expr]:
    """Fails on what is no PromQL."""
    found: list[promql_parser.Expr] = []
    promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")), found.append)
    return found


@pytest.mark.parametrize("panel", GRAFANA_PANELS, ids=lambda panel: panel["title"])
def test_a_panel_of_grafana_asks_for_metrics_and_labels_that_are_exported(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        asked = parts(target["expr"])
        selectors = [part for part in asked if isinstance(part, promql_parser.VectorSelector)]
        assert {selector.name for selector in selectors} <= set(EXPORTED)
        for selector in selectors:
            assert {matcher.name for matcher in selector.matchers.matchers} <= EXPORTED[str(selector.name)]
        kept = set.intersection(*(EXPORTED[str(selector.name)] for selector in selectors))
        aggregations = [part for part in asked if isinstance(part, promql_parser.AggregateExpr)]
        grouped = {label for part in aggregations if part.modifier is not None for label in part.modifier.labels}
        assert grouped <= kept
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) == grouped - {"le"}


def test_the_variables_of_grafana_are_a_datasource_and_a_models_label() -> None:
    source, model = GRAFANA["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    metric, label = re.findall(r"label_values\((\w+), (\w+)\)", model["query"]["query"])[0]
    assert label in EXPORTED[metric]
    assert GRAFANA["schemaVersion"] >= 39
    assert {panel["datasource"]["uid"] for panel in GRAFANA_PANELS} == {"${datasource}"}
    assert len({panel["id"] for panel in GRAFANA["panels"]}) == len(GRAFANA["panels"])
