"""What goes wrong with an upstream, and what this server's clients see of it; and who answers in its place."""

import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faulty_upstream import DONE, Answer, FaultyUpstream, error, faulty_upstream, piece, sse
from tests.running_server import HANG_SECONDS, RunningServer, chunks_of, eventually, running_server

Json = dict[str, Any]
KEY = "sk-never-to-be-seen"
USAGE = sse({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
WELL = Answer((piece("Hello"), piece(" you"), piece("", finish_reason="stop"), USAGE, DONE))
JSON = {"Content-Type": "Application/JSON; charset=utf-8"}
WHOLE = {"choices": [{"index": 0, "text": "Hello you", "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
"""An upstream that does not stream."""

REFUSALS: dict[str, tuple[Answer, int, str, str | None, str]] = {
    "bad-request": (
        error(400, message="top_k is 9. Give 8.", param="top_k"),
        400,
        "invalid_request",
        "top_k",
        "Give 8",
    ),
    "plain-error": (Answer((b'{"error": "no such adapter"}',), 400, JSON), 400, "invalid_request", None, "adapter"),
    "plain-text": (Answer((b"Not like this",), 422, {}), 400, "invalid_request", None, "Not like this"),
    "long-prompt": (
        error(400, message="too long", type="exceed_context_size_error"),
        *(400, "context_length_exceeded", None, "too long"),
    ),
    "tells-the-key": (error(400, message=f"what is {KEY} for?"), 400, "invalid_request", None, "what is *** for?"),
    "not-found": (error(404, message="unloaded"), 404, "model_not_found", "model", "unloaded"),
    "busy": (error(429, {"Retry-After": "7"}, message="many"), 429, "server_busy", None, "many"),
    "bad-key": (error(401, message=f"Incorrect key {KEY}"), 502, "upstream_error", None, "Correct its api_key"),
    "broken": (error(500, message="CUDA went away"), 502, "upstream_error", None, "CUDA went away"),
    "loading": (error(503, {"Retry-After": "5"}, message="Loading"), 502, "upstream_error", None, "Loading"),
    "gateway-timeout": (error(504, message="slow"), 504, "upstream_timeout", None, "slow"),
    "redirect": (Answer((), 307, {"Location": "http://else.where/"}), 502, "upstream_error", None, "a redirect"),
    "html": (Answer((b"<html>",), 200, {"Content-Type": "text/html"}), 502, "upstream_error", None, "text/html"),
    "wait-until": (
        error(503, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, message="Back in a minute"),
        *(502, "upstream_error", None, "in a minute"),
    ),
    "error-in-200": (error(200, message="no memory left", code=500), 502, "upstream_error", None, "no memory left"),
    "error-of-ollama": (Answer((b'{"error": "runner stopped"}',), 200, JSON), 502, "upstream_error", None, "stopped"),
    "long-prompt-in-200": (
        error(200, message="too long", code=400, type="exceed_context_size_error"),
        *(400, "context_length_exceeded", None, "too long"),
    ),
    "silent": (Answer(hangs=True), 504, "upstream_timeout", None, "sent nothing for 1 s"),
}
"""By model: what the upstream answers; status, code, param and words of what the client gets."""

HALF = piece("Hello")
BROKEN_OFF: dict[str, tuple[Answer, int, str, str]] = {
    "bad-json": (Answer((HALF, b"data: {nonsense\n\n", DONE)), 502, "upstream_error", "an invalid chunk"),
    "bad-shape": (Answer((HALF, sse({"choices": 7}), DONE)), 502, "upstream_error", "an invalid chunk"),
    "cut-event": (Answer((HALF, b'data: {"choices"')), 502, "upstream_error", "before the end of choice 0"),
    "given-up": (
        Answer((HALF, piece("", finish_reason="abort"), DONE)),
        502,
        "upstream_error",
        "finish_reason 'abort'",
    ),
    "error-of-llama": (
        Answer((HALF, b'error: {"code": 500, "message": "slot lost"}\n\n')),
        502,
        "upstream_error",
        "slot",
    ),
    "deep-json": (
        Answer((HALF, sse(b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), DONE)),
        *(502, "upstream_error", "nested too deeply"),
    ),
    "deep-error": (
        Answer((HALF, sse(b'{"error": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), DONE)),
        *(502, "upstream_error", "nested too deeply"),
    ),
    "error-event": (Answer((HALF, sse({"error": {"message": "out of memory"}}))), 502, "upstream_error", "of memory"),
    "cut": (Answer((HALF,), missing_bytes=9), 502, "upstream_error", "closed the connection"),
    "ended-early": (Answer((HALF,)), 502, "upstream_error", "ended its answer"),
    "no-finish": (Answer((HALF, DONE)), 502, "upstream_error", "before the end of choice 0"),
    "other-choice": (Answer((HALF, piece("x", index=1), DONE)), 502, "upstream_error", "sent choice index 1"),
    "endless-line": (Answer((HALF, b"data: " + b"x" * 2**25)), 502, "upstream_error", "an event of more than"),
    "stalled": (Answer((HALF,), hangs=True), 504, "upstream_timeout", "sent nothing for 1 s"),
}
"""Faults behind the first piece of text."""

ANSWERS = {
    "well": WELL,
    "well-typed-otherwise": Answer(WELL.body, headers={"Content-Type": "TEXT/Event-Stream; charset=UTF-8"}),
    "whole": Answer((json.dumps(WHOLE).encode(),), headers=JSON),
    "no-done": Answer((piece("Hello"), piece(" you", finish_reason="stop").rstrip())),
    "cut-behind-its-end": Answer((piece("Hello"), piece(" you", finish_reason="stop")), missing_bytes=9),
    "hangs-behind-its-end": Answer((piece("Hello you"), piece("", finish_reason="stop")), hangs=True),
    "kept": Answer(WELL.body, keeps=True),
    "hangs-up": Answer(status=0),
    "token-by-token": Answer(WELL.body, waits=True),
    "hangs": Answer(hangs=True),
    "hangs-in-text": Answer((HALF,), hangs=True),
    "dies-before-its-text": Answer((b": hello\n\n",)),
    **{name: row[0] for name, row in REFUSALS.items()},
    **{name: row[0] for name, row in BROKEN_OFF.items()},
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultyUpstream]:
    with faulty_upstream(ANSWERS) as running:
        yield running


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        yield bound.getsockname()[1]


@pytest.fixture(scope="module")
def front(
    tmp_path_factory: pytest.TempPathFactory, upstream: FaultyUpstream, closed_port: int, babbler: Path
) -> Iterator[RunningServer]:
    here = {"kind": "openai", "base_url": f"{upstream.url}/v1/"}
    nowhere = {"kind": "llamacpp", "base_url": f"http://127.0.0.1:{closed_port}"}
    broken = tmp_path_factory.mktemp("models") / "no-weights"
    broken.mkdir()
    upstreams: list[Json] = [
        {"name": "patient", **here, "models": [*ANSWERS], "api_key": KEY},
        {"name": "hasty", **here, "models": ["silent", "stalled"], "prefix": "hasty/", "timeout_seconds": 1},
        {"name": "keeper", **here, "prefix": "keeper/"},
        {"name": "spare", **here, "prefix": "spare/", "fallback": ["nobody", "gone", "babbler"]},
        {"name": "nowhere", **nowhere, "models": ["gone"]},
        {"name": "absent", **nowhere, "fallback": ["babbler"]},
    ]
    settings: Json = {"upstreams": json.dumps(upstreams), "fallbacks": json.dumps({"no-weights": ["well"]})}
    folder = tmp_path_factory.mktemp("front")
    with running_server(folder, default_model=babbler, available_models=broken, **settings) as running:
        yield running


def completion(model: str, **parameters: object) -> Json:
    return {"model": model, "prompt": "Hi", "temperature": 0, "max_tokens": 5, **parameters}


def own(model: str) -> str:
    return f"hasty/{model}" if model in ("silent", "stalled") else model


@pytest.mark.parametrize("model", REFUSALS)
def test_refusal_of_the_upstream_is_a_status_in_both_modes(front: RunningServer, model: str) -> None:
    _, status, code, param, words = REFUSALS[model]
    for stream in (False, True):
        answer = front.post("/v1/completions", completion(own(model), stream=stream))
        failure = answer.json()["error"]
        assert (answer.status_code, failure["code"], failure["param"]) == (status, code, param)
        assert words in failure["message"]
    assert answer.headers.get("retry-after") == {"busy": "7", "loading": "5", "wait-until": "0"}.get(model)


@pytest.mark.parametrize("model", BROKEN_OFF)
def test_answer_that_breaks_off_is_a_status_or_ends_the_stream_with_the_error(front: RunningServer, model: str) -> None:
    _, status, code, words = BROKEN_OFF[model]
    answer = front.post("/v1/completions", completion(own(model)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert words in answer.json()["error"]["message"]
    with front.stream("/v1/completions", completion(own(model))) as payloads:
        first, last = (json.loads(payload) for payload in payloads)
    assert first["choices"][0]["text"] == "Hello"
    assert last["error"]["code"] == code


@pytest.mark.parametrize(
    "model", ["well-typed-otherwise", "whole", "no-done", "cut-behind-its-end", "hangs-behind-its-end"]
)
def test_answer_that_is_whole_is_delivered_whole(front: RunningServer, model: str) -> None:
    choices = front.post("/v1/completions", completion(model)).json()["choices"]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("Hello you", "stop")]


def test_connection_that_was_kept_and_dropped_is_tried_once_more(
    front: RunningServer, upstream: FaultyUpstream
) -> None:
    """The upstream reads the second request and closes the connection, without a byte of an answer."""
    asked = upstream.asked.count("kept")
    for _ in range(2):
        assert front.post("/v1/completions", completion("keeper/kept")).json()["choices"][0]["text"] == "Hello you"
    assert upstream.asked.count("kept") == asked + 3


def test_connection_that_is_new_and_dropped_is_not_tried_again(front: RunningServer, upstream: FaultyUpstream) -> None:
    answer = front.post("/v1/completions", completion("hangs-up"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert upstream.asked.count("hangs-up") == 1


def test_refusal_of_the_model_is_the_message_of_a_chat(tmp_path: Path, babbler: Path) -> None:
    deltas = [{"role": "assistant", "content": ""}, {"refusal": "I can"}, {"refusal": "not."}]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]})
    body = {"model": "refuses", "messages": [{"role": "user", "content": "Hi"}]}
    with faulty_upstream({"refuses": Answer((*map(sse, chunks), DONE))}) as upstream:
        entry = {"name": "one", "kind": "openai", "base_url": upstream.url, "models": ["refuses"]}
        with running_server(tmp_path, default_model=babbler, upstreams=json.dumps([entry])) as server:
            (choice,) = server.post("/v1/chat/completions", body).json()["choices"]
            with server.stream("/v1/chat/completions", body) as payloads:
                streamed = [chunk["choices"][0] for chunk in chunks_of(payloads)]
    message = {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert (choice["message"], choice["finish_reason"]) == (message, "content_filter")
    assert [part["delta"].get("refusal") for part in streamed] == [None, "I can", "not.", None]
    assert streamed[-1]["finish_reason"] == "content_filter"


def test_models_of_an_upstream_come_before_downloads_and_the_default_model(
    tmp_path: Path, babbler: Path, upstream: FaultyUpstream
) -> None:
    entry = {"name": "lab", "kind": "openai", "base_url": upstream.url}
    settings: Json = {"upstreams": json.dumps([entry]), "allow_downloads": True, "default_for_unknown": True}
    with running_server(tmp_path, default_model=babbler, **settings) as server:
        eventually(lambda: server.readiness()["upstreams"], lambda found: found[0]["status"] == "ready")
        answer = server.post("/v1/completions", completion("lab/well"))
        assert answer.json()["choices"][0]["text"] == "Hello you"
        assert "upstream=lab" in access_line(server, answer)
        assert httpx.get(f"{server.url}/v1/models/lab/well").json()["owned_by"] == "lab"
        answer = server.post("/v1/completions", completion("gpt-9"))
        assert " babbler prompt=" in access_line(server, answer)


def test_upstream_that_cannot_be_reached_is_a_502(front: RunningServer) -> None:
    answer = front.post("/v1/completions", completion("gone"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert "'nowhere' cannot be reached" in answer.json()["error"]["message"]


def test_upstream_behind_a_proxy_that_cannot_be_used_is_down_and_says_why(
    tmp_path: Path, babbler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    entry = {"name": "far", "kind": "openai", "base_url": "http://gpu.example:8000", "models": ["far-model"]}
    with running_server(tmp_path, wait=False, default_model=babbler, upstreams=json.dumps([entry])) as server:
        monkeypatch.delenv("ALL_PROXY")  # the test asks without it
        server.wait_until_ready()
        wait_for_upstream(server, "down", ["far-model"])
        answer = server.post("/v1/completions", completion("far-model"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
        for message in (answer.json()["error"]["message"], server.readiness()["upstreams"][0]["error"]):
            assert "SOCKS needs the package socksio" in message
        assert "Traceback" not in server.log.read_text()


def test_text_passes_through_piece_by_piece(front: RunningServer, upstream: FaultyUpstream) -> None:
    """The upstream sends each piece when the client has the one before."""
    body = completion("token-by-token", stream_options={"include_usage": True})
    with front.stream("/v1/completions", body) as payloads:
        assert json.loads(next(payloads))["choices"][0]["text"] == "Hello"
        upstream.go_on.release()
        assert json.loads(next(payloads))["choices"][0]["text"] == " you"
        for _ in range(3):
            upstream.go_on.release()
        finish, usage, done = payloads
    assert json.loads(finish)["choices"][0]["finish_reason"] == "stop"
    assert (json.loads(usage)["usage"]["total_tokens"], done) == (5, "[DONE]")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["hangs", "hangs-in-text"])
def test_client_that_leaves_closes_the_request_of_the_upstream(
    front: RunningServer, upstream: FaultyUpstream, model: str, stream: bool
) -> None:
    asked, left = upstream.asked.count(model), upstream.left.count(model)
    content = json.dumps(completion(model, stream=stream)).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}"
    with socket.create_connection((front.host, front.port or 0)) as client:
        client.sendall(f"{head}\r\n\r\n".encode() + content)
        eventually(lambda: upstream.asked.count(model), lambda times: times == asked + 1)
        assert upstream.left.count(model) == left
    eventually(lambda: upstream.left.count(model), lambda times: times == left + 1)


def test_key_is_sent_to_its_upstream_and_is_nowhere_else(front: RunningServer, upstream: FaultyUpstream) -> None:
    said = [front.post("/v1/completions", completion(model)).text for model in ("well", "tells-the-key", "bad-key")]
    assert upstream.keys[-1] == f"Bearer {KEY}"
    front.post("/v1/completions", completion("spare/well"))
    assert upstream.keys[-1] is None
    said += [httpx.get(f"{front.url}{path}").text for path in ("/ready", "/v1/models")]
    assert not [text for text in [*said, front.log.read_text()] if KEY in text]


def test_readiness_is_the_default_models_and_tells_of_the_upstreams(front: RunningServer) -> None:
    upstreams = eventually(
        lambda: front.readiness()["upstreams"], lambda found: "unknown" not in [one["status"] for one in found]
    )
    assert {one["name"]: one["status"] for one in upstreams} == {
        **dict.fromkeys(("patient", "hasty", "keeper", "spare"), "ready"),
        **dict.fromkeys(("nowhere", "absent"), "down"),
    }
    absent = upstreams[-1]
    assert absent["models"] == []
    assert "cannot be reached" in absent["error"]


def test_models_are_listed_with_their_upstream_as_owner(front: RunningServer) -> None:
    front.readiness()
    listed = {model["id"]: model["owned_by"] for model in httpx.get(f"{front.url}/v1/models").json()["data"]}
    assert {"babbler": "mlx-manager", "well": "patient", "hasty/stalled": "hasty", "gone": "nowhere"}.items() <= (
        listed.items()
    )


@pytest.mark.parametrize(
    "model", ["spare/broken", "spare/busy", "spare/loading", "spare/dies-before-its-text", "absent/anything"]
)
def test_fallback_answers_in_place_of_an_upstream_that_cannot(front: RunningServer, model: str) -> None:
    answer = front.post("/v1/completions", completion(model))
    alone = front.post("/v1/completions", completion("babbler"))
    assert answer.json()["choices"] == alone.json()["choices"]
    assert answer.json()["model"] == model
    assert " babbler prompt=" in access_line(front, answer)
    assert "upstream=" not in access_line(front, answer)
    with front.stream("/v1/completions", completion(model)) as payloads:
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks_of(payloads))
    assert text == alone.json()["choices"][0]["text"]


def test_chat_that_falls_back_after_its_headers_begins_once(front: RunningServer) -> None:
    body = {"model": "spare/dies-before-its-text", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    with front.stream("/v1/chat/completions", body) as payloads:
        chunks = chunks_of(payloads)
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks].count("assistant") == 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("model", "status"), [("spare/bad-request", 400), ("spare/not-found", 404)])
def test_refused_request_does_not_fall_back(front: RunningServer, model: str, status: int) -> None:
    assert front.post("/v1/completions", completion(model)).status_code == status


def test_nothing_falls_back_once_there_was_text(front: RunningServer) -> None:
    with front.stream("/v1/completions", completion("spare/cut")) as payloads:
        first, last = (json.loads(payload) for payload in payloads)
    assert (first["choices"][0]["text"], last["error"]["code"]) == ("Hello", "upstream_error")


def test_upstream_answers_for_a_model_that_cannot_be_loaded(front: RunningServer) -> None:
    assert front.post("/v1/completions", completion("no-weights")).json()["choices"][0]["text"] == "Hello you"


def test_upstream_answers_for_a_model_whose_queue_is_full(
    tmp_path: Path, babbler: Path, upstream: FaultyUpstream
) -> None:
    entry = {"name": "one", "kind": "openai", "base_url": upstream.url, "models": ["well"]}
    settings: Json = {"upstreams": json.dumps([entry]), "fallbacks": json.dumps({"babbler": ["well"]})}
    with running_server(tmp_path, default_model=babbler, max_queue=0, **settings) as server:
        with server.stream("/v1/completions", completion("babbler", n=64, max_tokens=8000)) as payloads:
            next(payloads)
            answer = server.post("/v1/completions", completion("babbler"))
        assert answer.json()["choices"][0]["text"] == "Hello you"


def test_failure_of_the_requests_own_model_is_told_when_no_fallback_answers_either(
    tmp_path: Path, babbler: Path, upstream: FaultyUpstream
) -> None:
    entry = {"name": "one", "kind": "openai", "base_url": upstream.url, "models": ["busy"], "fallback": ["nobody"]}
    with running_server(tmp_path, default_model=babbler, upstreams=json.dumps([entry])) as server:
        answer = server.post("/v1/completions", completion("busy"))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


def test_server_that_stops_ends_the_streams_of_upstreams_with_an_error(
    tmp_path: Path, babbler: Path, upstream: FaultyUpstream
) -> None:
    entry = {"name": "one", "kind": "openai", "base_url": upstream.url, "models": ["hangs-in-text"]}
    settings: Json = {"upstreams": json.dumps([entry]), "drain_timeout_seconds": 1}
    with running_server(tmp_path, default_model=babbler, **settings) as server:
        with server.stream("/v1/completions", completion("hangs-in-text")) as payloads:
            next(payloads)
            server.process.send_signal(signal.SIGTERM)
            (last,) = payloads
            assert json.loads(last)["error"]["code"] == "not_ready"
        assert server.process.wait(HANG_SECONDS) == 0
        assert "Traceback" not in server.log.read_text()


def test_upstream_is_asked_again_and_again_how_it_is_and_what_it_has(tmp_path: Path, babbler: Path) -> None:
    with contextlib.ExitStack() as running:
        upstream = running.enter_context(faulty_upstream({"well": WELL}))
        entry = {"name": "one", "kind": "openai", "base_url": upstream.url}
        settings: Json = {"upstreams": json.dumps([entry])}
        with running_server(
            tmp_path, bounds={"upstream_poll_seconds": 0.1}, default_model=babbler, **settings
        ) as server:
            wait_for_upstream(server, "ready", ["one/well"])
            assert server.post("/v1/completions", completion("one/well")).json()["usage"]["total_tokens"] == 5
            running.close()
            wait_for_upstream(server, "down", ["one/well"])
            assert server.post("/v1/completions", completion("one/well")).status_code == 502
            running.enter_context(faulty_upstream({"new": WELL}, port=httpx.URL(upstream.url).port or 0))
            wait_for_upstream(server, "ready", ["one/new"])
            assert server.post("/v1/completions", completion("one/new")).status_code == 200
            assert server.post("/v1/completions", completion("one/well")).status_code == 404
            running.close()


def access_line(server: RunningServer, answer: httpx.Response) -> str:
    """What the log says of the request, once it does."""
    request_id = answer.headers["x-request-id"]
    server.wait_for_log(f"id={request_id}")
    return next(line for line in server.log.read_text().splitlines() if f"id={request_id}" in line)


def wait_for_upstream(server: RunningServer, status: str, models: list[str]) -> None:
    def look() -> tuple[str, list[str]]:
        (upstream,) = server.readiness()["upstreams"]
        return upstream["status"], upstream["models"]

    eventually(look, lambda found: found == (status, models))
