"""Stored responses: whose they are, how long and how many; what is cancelled; and models of upstreams behind them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import folding
from tests.faulty_upstream import DONE, Answer, FaultyUpstream, faulty_upstream, sse
from tests.running_server import HANG_SECONDS, RunningServer, eventually, running_server

QUESTION: dict[str, Any] = {"model": "demo", "input": "Count to 3", "temperature": 0}
ENDLESS = {"model": "babbler", "input": "Go on", "max_output_tokens": 8000, "temperature": 0, "stream": True}


def chunk(finish_reason: str | None = None, **delta: Any) -> bytes:
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def call(name: str, arguments: str) -> bytes:
    function = {"name": name, "arguments": arguments}
    return chunk(tool_calls=[{"index": 0, "id": "call_7", "function": function}])


USAGE = sse({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}})
PATCH = '*** Begin Patch\n+a "b"\n*** End Patch'
ANSWERS = {
    "patches": Answer((call("patch", json.dumps({"input": PATCH})), chunk("tool_calls"), USAGE, DONE)),
    "breaks": Answer((chunk(content="Half"),), missing_bytes=9),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultyUpstream]:
    with faulty_upstream(ANSWERS) as running:
        yield running


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, upstream: FaultyUpstream) -> Iterator[RunningServer]:
    """Stores some responses of some kilobytes for a second; anna and bob have keys."""
    upstreams = [{"name": "up", "kind": "openai", "base_url": upstream.url, "models": list(ANSWERS)}]
    settings: dict[str, Any] = {
        "api_keys": "anna=a,bob=b",
        "response_store_mb": 0.005,
        "response_ttl_seconds": 2,
        "upstreams": json.dumps(upstreams),
    }
    with running_server(tmp_path_factory.mktemp("small"), **settings) as running:
        yield running


def ask(server: RunningServer, key: str = "a", path: str = "", method: str = "POST", **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{server.url}/v1/responses{path}"
    return httpx.request(method, url, json=body or None, headers=headers, timeout=HANG_SECONDS)


def status_of(server: RunningServer, response_id: str, key: str = "a") -> int:
    return ask(server, key, f"/{response_id}", "GET").status_code


def test_a_response_is_its_keys_own_and_goes_after_its_time(small: RunningServer) -> None:
    made = ask(small, **QUESTION).json()["id"]
    assert (status_of(small, made), status_of(small, made, "b")) == (200, 404)
    assert ask(small, "b", f"/{made}", "DELETE").status_code == 404
    other = ask(small, "b", **QUESTION, previous_response_id=made)
    assert other.json()["error"]["code"] == "previous_response_not_found"
    reference = [
        {"type": "item_reference", "id": ask(small, path=f"/{made}/input_items", method="GET").json()["first_id"]}
    ]
    assert ask(small, "a", **{**QUESTION, "input": reference}).status_code == 200
    assert ask(small, "b", **{**QUESTION, "input": reference}).json()["error"]["param"] == "input[0].id"
    eventually(lambda: status_of(small, made), lambda status: status == 404)


def test_the_oldest_responses_make_room(small: RunningServer) -> None:
    made = [ask(small, **QUESTION).json()["id"] for _ in range(8)]
    statuses = [status_of(small, response_id) for response_id in made]
    assert statuses == sorted(statuses, reverse=True)
    assert (statuses[0], statuses[-1]) == (404, 200)


def test_more_input_than_there_is_room_for_is_answered_and_not_stored(small: RunningServer) -> None:
    response = ask(small, **{**QUESTION, "instructions": "Be brief. " * 600})
    assert response.status_code == 200
    assert status_of(small, response.json()["id"]) == 404


def test_an_item_too_many_is_refused(tmp_path: Path) -> None:
    with running_server(tmp_path, bounds={"max_messages": 2}) as server:
        items = [{"role": "user", "content": "Hi"}] * 3
        assert server.post("/v1/responses", {**QUESTION, "input": items}).json()["error"]["param"] == "input"


def test_a_response_that_runs_can_be_cancelled(server: RunningServer) -> None:
    with httpx.stream("POST", f"{server.url}/v1/responses", json=ENDLESS, timeout=HANG_SECONDS) as stream:
        received = ""
        parts = stream.iter_text()
        while "output_text.delta" not in received:
            received += next(parts)
        _, created = next(folding.named_events(received.split("\n\n")[0]))
        response_id = created["response"]["id"]
        url = f"{server.url}/v1/responses/{response_id}"
        running = httpx.get(url).json()
        assert (running["status"], running["output"]) == ("in_progress", [])
        going_on = server.post("/v1/responses", {**QUESTION, "previous_response_id": response_id})
        assert going_on.json()["error"]["code"] == "previous_response_not_found"
        cancelled = httpx.post(f"{url}/cancel", timeout=HANG_SECONDS).json()
        received += "".join(parts)
    last = folding.of_response_events(received)
    assert last == cancelled == httpx.get(url).json()
    assert (last["status"], last["output"][-1]["status"]) == ("cancelled", "incomplete")
    assert 0 < last["usage"]["output_tokens"] < 8000
    assert httpx.post(f"{url}/cancel").json() == cancelled


def test_a_response_that_is_deleted_ends_and_does_not_come_back(server: RunningServer) -> None:
    with server.stream("/v1/responses", ENDLESS) as payloads:
        url = f"{server.url}/v1/responses/{json.loads(next(payloads))['response']['id']}"
        assert httpx.delete(url).json()["deleted"] is True
        assert json.loads(list(payloads)[-1])["response"]["status"] == "cancelled"
    assert httpx.get(url).status_code == 404


def test_a_response_that_has_ended_stays_as_it_is(server: RunningServer) -> None:
    made = server.post("/v1/responses", QUESTION).json()
    assert server.post(f"/v1/responses/{made['id']}/cancel", {}).json() == made


def test_a_response_whose_client_leaves_is_forgotten(server: RunningServer) -> None:
    with server.stream("/v1/responses", ENDLESS) as payloads:
        response_id = json.loads(next(payloads))["response"]["id"]
        assert httpx.get(f"{server.url}/v1/responses/{response_id}").status_code == 200
    url = f"{server.url}/v1/responses/{response_id}"
    eventually(lambda: httpx.get(url).status_code, lambda status: status == 404)


def test_an_unknown_path_is_openais_error(server: RunningServer) -> None:
    for path in ("/v1/responses/resp_0", "/v1/responses/resp_0/input_items", "/v1/responses/resp_0/unknown"):
        answer = httpx.get(f"{server.url}{path}")
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    assert httpx.get(f"{server.url}/v1/responses/resp_0/input_items?limit=0").status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstreams_model_is_shown_a_custom_tool_as_a_function(
    small: RunningServer, upstream: FaultyUpstream, stream: bool
) -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /.*/"}
    history = {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": PATCH}
    result = {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"}
    tools = [{"type": "custom", "name": "patch", "format": grammar}]
    answer = ask(small, model="patches", input=[history, result], tools=tools, stream=stream)
    assert "not enforced" in answer.headers["x-mlx-manager-warning"]
    response = folding.of_response_events(answer.text) if stream else answer.json()
    (item,) = response["output"]
    assert (item["type"], item["name"], item["input"], item["call_id"]) == (
        "custom_tool_call",
        "patch",
        PATCH,
        "call_7",
    )
    sent = upstream.bodies[-1]
    assert sent["tools"][0]["function"]["parameters"]["required"] == ["input"]
    assert json.loads(sent["messages"][0]["tool_calls"][0]["function"]["arguments"]) == {"input": PATCH}


def test_a_failure_in_mid_stream_is_a_failed_response_that_is_stored(small: RunningServer) -> None:
    response = folding.of_response_events(ask(small, model="breaks", input="Hi", stream=True).text)
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["output"][0]["content"][0]["text"] == "Half"
    assert ask(small, path=f"/{response['id']}", method="GET").json() == response


def test_items_that_are_left_out_are_counted(server: RunningServer) -> None:
    counter = 'mlx_server_ignored_input_items_total{model="demo"} '

    def counted() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.removeprefix(counter)) for line in lines if line.startswith(counter))

    before = counted()
    items = [{"type": "web_search_call", "id": "ws_1"}, {"role": "user", "content": "Hi"}]
    assert server.post("/v1/responses", {**QUESTION, "input": items}).status_code == 200
    assert counted() == before + 1
