"""Messages where something is staged: slow prompts, upstreams, aliases, keys, full queues, dying workers."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from tests import folding
from tests.e2e.conftest import StageSteps
from tests.faulty_upstream import DONE, Answer, FaultyUpstream, error, faulty_upstream, sse
from tests.running_server import HANG_SECONDS, RunningServer, eventually, running_server

Json = dict[str, Any]
ASK: Json = {"max_tokens": 40, "temperature": 0, "messages": [{"role": "user", "content": "Count to 4"}]}


def chunk(finish_reason: str | None = None, **delta: Any) -> bytes:
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def call(index: int, text: str, name: str | None = None) -> bytes:
    named = {"id": f"call_{index}"} if name is not None else {}
    return chunk(tool_calls=[{"index": index, "function": {"name": name, "arguments": text}, **named}])


USAGE = sse({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}})
ANSWERS = {
    "speaks": Answer((chunk(content="1, 2,"), chunk(content=" 3"), chunk("stop"), USAGE, DONE)),
    "thinks": Answer((chunk(reasoning_content="Hm. "), chunk(content="Yes."), chunk("stop"), USAGE, DONE)),
    "calls": Answer(
        (
            chunk(content="Let me look."),
            call(0, "", "get_weather"),
            call(0, '{"city": "Os'),
            call(0, 'lo"}'),
            call(1, '{"city": "Rome"}', "get_weather"),
            chunk("tool_calls"),
            USAGE,
            DONE,
        )
    ),
    "says-nothing": Answer((chunk(content=""), chunk("stop"), USAGE, DONE)),
    "is-cut": Answer((chunk(content="1, 2"), chunk("length"), USAGE, DONE)),
    "does-not-count": Answer((chunk(content="1, 2"), chunk("length"), DONE)),
    "breaks": Answer((chunk(content="1, 2"), b"data: {nonsense\n\n")),
    "is-full": error(400, message="too long", type="exceed_context_size_error"),
    "is-busy": error(429, {"Retry-After": "7"}, message="many"),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultyUpstream]:
    with faulty_upstream(ANSWERS) as running:
        yield running


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, upstream: FaultyUpstream) -> Iterator[RunningServer]:
    settings: Json = {
        "upstreams": json.dumps([{"name": "up", "kind": "openai", "base_url": upstream.url, "models": [*ANSWERS]}]),
        "aliases": json.dumps({"claude-haiku-*": "demo", "claude-*": "speaks", "gpt-4": "demo"}),
        "api_keys": "a-key",
    }
    with running_server(tmp_path_factory.mktemp("front"), **settings) as running:
        yield running


def ask(front: RunningServer, model: str, stream: bool, **parameters: Any) -> Json:
    response = post(front, {**ASK, "model": model, "stream": stream, **parameters})
    assert response.status_code == 200, response.text
    return folding.of_message_events(response.text) if stream else response.json()


def post(front: RunningServer, body: Json, path: str = "/v1/messages") -> httpx.Response:
    return httpx.post(f"{front.url}{path}", json=body, headers={"x-api-key": "a-key"}, timeout=HANG_SECONDS)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "content", "stop_reason"),
    [
        ("speaks", [{"type": "text", "text": "1, 2, 3"}], "end_turn"),
        ("thinks", [{"type": "thinking", "thinking": "Hm. "}, {"type": "text", "text": "Yes."}], "end_turn"),
        (
            "calls",
            [
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "toolu_0", "name": "get_weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}},
            ],
            "tool_use",
        ),
        ("says-nothing", [{"type": "text", "text": ""}], "end_turn"),
        ("is-cut", [{"type": "text", "text": "1, 2"}], "model_context_window_exceeded"),
        ("does-not-count", [{"type": "text", "text": "1, 2"}], "max_tokens"),
    ],
)
def test_upstreams_answer_through_messages(
    front: RunningServer, stream: bool, model: str, content: list[Json], stop_reason: str
) -> None:
    message = ask(front, model, stream)
    pairs = zip(message["content"], content, strict=True)
    shown = [{name: block[name] for name in expected} for block, expected in pairs]
    assert (shown, message["stop_reason"]) == (content, stop_reason)
    if model != "does-not-count":
        assert (message["usage"]["input_tokens"], message["usage"]["output_tokens"]) == (9, 7)


def test_a_fault_of_an_upstream_in_mid_stream_is_the_error_event(front: RunningServer) -> None:
    events = list(folding.message_events(post(front, {**ASK, "model": "breaks", "stream": True}).text))
    kind, last = events[-1]
    assert (kind, last["error"]["type"]) == ("error", "api_error")
    assert "invalid chunk" in last["error"]["message"]
    assert last["request_id"]


def test_refusals_of_upstreams_are_anthropics(front: RunningServer) -> None:
    full = post(front, {**ASK, "model": "is-full"})
    assert (full.status_code, full.json()["error"]["type"]) == (400, "invalid_request_error")
    assert full.json()["error"]["message"].startswith("prompt is too long: ")
    busy = post(front, {**ASK, "model": "is-busy"})
    assert (busy.status_code, busy.json()["error"]["type"], busy.headers["retry-after"]) == (
        529,
        "overloaded_error",
        "7",
    )


def test_an_upstream_counts_the_tokens_of_a_prompt(front: RunningServer, upstream: FaultyUpstream) -> None:
    body = {"model": "speaks", "messages": ASK["messages"]}
    assert post(front, body, "/v1/messages/count_tokens").json() == {"input_tokens": 9}
    assert upstream.bodies[-1]["max_tokens"] == 1
    refused = post(front, body | {"model": "does-not-count"}, "/v1/messages/count_tokens")
    assert (refused.status_code, "does not count" in refused.json()["error"]["message"]) == (502, True)


def test_unknown_names_go_to_the_model_of_the_first_alias_that_fits(front: RunningServer) -> None:
    assert ask(front, "claude-haiku-4-5", False)["content"][0]["text"] == "1, 2, 3, 4"
    opus = ask(front, "claude-opus-4-8", False)
    assert (opus["content"][0]["text"], opus["model"]) == ("1, 2, 3", "claude-opus-4-8")
    chat = post(front, {**ASK, "model": "gpt-4"}, "/v1/chat/completions").json()
    assert chat["choices"][0]["message"]["content"] == "1, 2, 3, 4"
    found = httpx.get(f"{front.url}/v1/models/gpt-4", headers={"x-api-key": "a-key"})
    assert found.json()["id"] == "demo"
    unknown = post(front, {**ASK, "model": "gpt-5"})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    assert "[aliases]" in unknown.json()["error"]["message"]


@pytest.mark.parametrize("credentials", [{"api_key": "a-key"}, {"auth_token": "a-key"}])
def test_both_kinds_of_credentials_authenticate(front: RunningServer, credentials: Any) -> None:
    client = anthropic.Anthropic(base_url=front.url, max_retries=0, **credentials)
    assert client.messages.count_tokens(model="demo", messages=ASK["messages"]).input_tokens > 0


def test_a_wrong_key_is_an_authentication_error(front: RunningServer) -> None:
    client = anthropic.Anthropic(base_url=front.url, api_key="another", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError) as refused:
        client.messages.count_tokens(model="demo", messages=ASK["messages"])
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["error"]["type"] == "authentication_error"
    assert httpx.head(f"{front.url}/api/hello").status_code == 200


def test_pings_come_while_the_prompt_is_read(tmp_path: Path, stage_steps: StageSteps) -> None:
    """The forward pass of the prompt takes longer than the time between two pings."""
    with running_server(tmp_path) as server:
        stage_steps(4)
        answer = server.post("/v1/messages", {**ASK, "model": "demo", "stream": True, "max_tokens": 1})
        stage_steps(0)
    names = [line.removeprefix("event: ") for line in answer.text.split("\n") if line.startswith("event: ")]
    assert names[0] == "ping"
    assert next(name for name in names if name != "ping") == "message_start"
    assert names[-1] == "message_stop"


def test_a_dead_worker_ends_the_stream_with_an_error_event(tmp_path: Path, babbler: Path) -> None:
    body = {**ASK, "model": "babbler", "max_tokens": 8000, "stream": True}
    with (
        running_server(tmp_path, default_model=babbler) as server,
        httpx.stream("POST", f"{server.url}/v1/messages", json=body, timeout=HANG_SECONDS) as response,
    ):
        texts = response.iter_text()
        received = next(texts)
        server.worker().kill()
        received += "".join(texts)
    events = list(folding.message_events(received))
    assert (events[0][0], events[-1][0]) == ("message_start", "error")
    assert events[-1][1]["error"]["type"] == "api_error"


def test_a_full_queue_is_an_overloaded_error_that_says_when_to_come_back(tmp_path: Path, babbler: Path) -> None:
    """The worker is stopped until all refusals are out."""
    body = {**ASK, "model": "babbler", "max_tokens": 4}
    with running_server(tmp_path, default_model=babbler, max_queue=0) as server, ThreadPoolExecutor(80) as clients:
        worker = server.worker()
        worker.suspend()
        asked = [clients.submit(server.post, "/v1/messages", body) for _ in range(80)]
        eventually(lambda: sum(request.done() for request in asked), lambda done: done == 80 - 64)
        worker.resume()
        answers = [request.result() for request in asked]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 16
    assert {answer.status_code for answer in refused} == {529}
    assert {answer.json()["error"]["type"] for answer in refused} == {"overloaded_error"}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
