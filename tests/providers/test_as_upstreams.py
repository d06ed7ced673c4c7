"""The real servers as upstreams of this one: mlx-lm's, a second server of this kind, and llama.cpp's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import folding
from tests.e2e.test_folding import CHAT, COMPLETIONS, same_message, without_identity
from tests.providers.scripted_llama import ANSWER, CALL
from tests.providers.upstreams import Upstream
from tests.running_server import HANG_SECONDS, RunningServer, chunks_of, eventually, running_server

Json = dict[str, Any]
COUNT = [{"role": "user", "content": "Count to 5"}]
COUNTED = "1, 2, 3, 4, 5"


@pytest.fixture(scope="module")
def front(
    tmp_path_factory: pytest.TempPathFactory, server: RunningServer, mlx_lm_server: Upstream
) -> Iterator[RunningServer]:
    """A server whose upstreams are `house`, another one like it, and `mlx`, mlx-lm's."""
    upstreams = [
        {"name": "house", "kind": "openai", "base_url": f"{server.url}/v1"},
        {"name": "mlx", "kind": "mlxlm", "base_url": mlx_lm_server.url, "prefix": "mlx:"},
    ]
    with running_server(tmp_path_factory.mktemp("front"), upstreams=json.dumps(upstreams)) as running:
        eventually(
            lambda: running.readiness()["upstreams"], lambda found: {one["status"] for one in found} == {"ready"}
        )
        yield running


@pytest.fixture(scope="module")
def before_llama_cpp(
    tmp_path_factory: pytest.TempPathFactory, llama_cpp_server: Upstream
) -> Iterator[tuple[RunningServer, str]]:
    upstreams = [{"name": "llama", "kind": "llamacpp", "base_url": llama_cpp_server.url}]
    with running_server(tmp_path_factory.mktemp("front"), upstreams=json.dumps(upstreams)) as running:
        eventually(lambda: running.readiness()["upstreams"], lambda found: found[0]["status"] == "ready")
        yield running, f"llama/{llama_cpp_server.model_id}"


def fold_both_ways(server: RunningServer, path: str, body: Json) -> Json:
    """The folded answer, which must be the same streamed and whole."""
    whole = server.post(path, body)
    assert whole.status_code == 200, whole.text
    with server.stream(path, body | {"stream_options": {"include_usage": True}}) as payloads:
        chunks = chunks_of(payloads)
    if "chat" in path:
        streamed, folded = folding.of_chat_chunks(chunks), folding.of_chat_response(whole.json())
    else:
        streamed, folded = folding.of_completion_chunks(chunks), folding.of_completion_response(whole.json())
    assert folding.same(without_identity(streamed), without_identity(folded))
    return folded


def answer_alone(folded: Json) -> Json:
    usage = {name: folded["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
    return {"choices": folded["choices"], "usage": usage}


@pytest.mark.parametrize("parameters", CHAT, ids=str)
def test_chat_over_another_house_is_the_answer_asked_directly_streamed_or_whole(
    front: RunningServer, server: RunningServer, parameters: Json
) -> None:
    messages = [{"role": "user", "content": "Tell me a story with 😀 and 時."}]
    body = {"model": "demo", "messages": messages, "temperature": 0, "seed": 4, "max_tokens": 40, **parameters}
    over = fold_both_ways(front, "/v1/chat/completions", body | {"model": f"house/{body['model']}"})
    direct = folding.of_chat_response(server.post("/v1/chat/completions", body).json())
    assert folding.same(answer_alone(over), answer_alone(without_identity(direct)))


@pytest.mark.parametrize("parameters", COMPLETIONS, ids=str)
def test_completion_over_another_house_is_the_answer_asked_directly_streamed_or_whole(
    front: RunningServer, server: RunningServer, parameters: Json
) -> None:
    body = {"model": "demo", "prompt": "Once upon a time", "temperature": 0, "seed": 4, **parameters}
    over = fold_both_ways(front, "/v1/completions", body | {"model": "house/demo"})
    direct = folding.of_completion_response(server.post("/v1/completions", body).json())
    assert folding.same(answer_alone(over), answer_alone(without_identity(direct)))


def test_chat_over_mlx_lm_folds_and_counts_as_mlx_lm_does(front: RunningServer, mlx_lm_server: Upstream) -> None:
    body = {"messages": COUNT, "temperature": 0, "max_tokens": 40}
    over = fold_both_ways(front, "/v1/chat/completions", body | {"model": f"mlx:{mlx_lm_server.model_id}"})
    direct = httpx.post(f"{mlx_lm_server.url}/v1/chat/completions", json=body, timeout=HANG_SECONDS).json()
    assert over["choices"][0]["content"] == direct["choices"][0]["message"]["content"] == COUNTED
    assert over["choices"][0]["finish_reason"] == direct["choices"][0]["finish_reason"] == "stop"
    assert over["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]
    assert over["usage"]["prompt_tokens"] == direct["usage"]["prompt_tokens"]


def test_completion_over_mlx_lm_stops_where_it_is_told(front: RunningServer, mlx_lm_server: Upstream) -> None:
    body = {"model": f"mlx:{mlx_lm_server.model_id}", "prompt": "Once upon a time", "temperature": 0}
    sixteen = fold_both_ways(front, "/v1/completions", body)
    assert (sixteen["usage"]["completion_tokens"], sixteen["choices"][0]["finish_reason"]) == (16, "length")
    text = sixteen["choices"][0]["text"]
    stopped = fold_both_ways(front, "/v1/completions", body | {"stop": [text[10:14]]})
    assert (stopped["choices"][0]["text"], stopped["choices"][0]["finish_reason"]) == (text[:10], "stop")


def message_both_ways(server: RunningServer, body: Json) -> Json:
    """The message, which must be the same streamed and whole; its tokens are those that are counted beforehand."""
    whole, streamed = (server.post("/v1/messages", {**body, "stream": stream}) for stream in (False, True))
    assert (whole.status_code, streamed.status_code) == (200, 200), whole.text
    message: Json = whole.json()
    counted = server.post("/v1/messages/count_tokens", {name: body[name] for name in ("model", "messages")}).json()
    usage = message["usage"]
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}
    assert same_message(folding.of_message_events(streamed.text), whole.json())
    return message


def test_messages_are_answered_by_another_house(front: RunningServer, server: RunningServer) -> None:
    over = message_both_ways(front, {"model": "house/demo", "messages": COUNT, "temperature": 0, "max_tokens": 40})
    assert over["content"] == [{"type": "text", "text": COUNTED, "citations": None}]
    assert (over["stop_reason"], over["usage"]["output_tokens"]) == ("end_turn", 14)


def test_messages_are_answered_by_mlx_lm(front: RunningServer, mlx_lm_server: Upstream) -> None:
    body = {"model": f"mlx:{mlx_lm_server.model_id}", "messages": COUNT, "temperature": 0, "max_tokens": 40}
    message = message_both_ways(front, body)
    assert message["content"] == [{"type": "text", "text": COUNTED, "citations": None}]
    stopped = front.post("/v1/messages", {**body, "stop_sequences": ["4"]}).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "4")


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/chat/completions", "n", 2),
        ("/v1/chat/completions", "logprobs", True),
        ("/v1/chat/completions", "min_tokens", 3),
        ("/v1/chat/completions", "ignore_eos", True),
        ("/v1/completions", "echo", True),
        ("/v1/completions", "suffix", "the end"),
        ("/v1/completions", "prompt", [1, 2, 3]),
        ("/v1/completions", "prompt", ["a", "b"]),
    ],
)
def test_what_mlx_lm_cannot_do_is_refused_by_name(
    front: RunningServer, mlx_lm_server: Upstream, path: str, field: str, value: object
) -> None:
    body = {"model": f"mlx:{mlx_lm_server.model_id}", "messages": COUNT, "prompt": "Hi"}
    del body["prompt" if "chat" in path else "messages"]
    answer = front.post(path, body | {field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert "mlx_lm.server" in answer.json()["error"]["message"]


def test_turns_of_a_called_tool_reach_the_template_of_mlx_lm(
    tmp_path: Path, mlx_lm_server: Upstream, scripted_llama: Path
) -> None:
    function = {"name": "get_weather", "arguments": json.loads(CALL)["arguments"]}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "content": "7 degrees", "tool_call_id": "1"},
    ]
    named = {"name": "mlx", "kind": "mlxlm", "base_url": mlx_lm_server.url, "models": [str(scripted_llama)]}
    with running_server(tmp_path, upstreams=json.dumps([named])) as front:
        body = {"model": str(scripted_llama), "messages": messages, "temperature": 0}
        assert fold_both_ways(front, "/v1/chat/completions", body)["choices"][0]["content"] == ANSWER


def test_models_of_upstreams_are_listed_under_their_prefixes(front: RunningServer, mlx_lm_server: Upstream) -> None:
    listed = {model["id"]: model["owned_by"] for model in httpx.get(f"{front.url}/v1/models").json()["data"]}
    assert {"demo": "mlx-manager", "house/demo": "house", "house/babbler": "house"}.items() <= listed.items()
    assert listed[f"mlx:{mlx_lm_server.model_id}"] == "mlx"
    assert httpx.get(f"{front.url}/v1/models/house/demo").json()["owned_by"] == "house"
    assert httpx.get(f"{front.url}/v1/models/house/nothing").status_code == 404


def test_model_that_the_upstream_does_not_list_is_not_found(front: RunningServer) -> None:
    """mlx-lm's server would try to download it."""
    answer = front.post("/v1/completions", {"model": "mlx:org/never-heard-of", "prompt": "Hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_refusal_of_another_house_stays_what_it_is(front: RunningServer) -> None:
    answer = front.post("/v1/completions", {"model": "house/short", "prompt": "word " * 100})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert answer.json()["error"]["param"] == "prompt"
    assert "32 tokens" in answer.json()["error"]["message"]
    answer = front.post("/v1/completions", {"model": "house/demo", "prompt": [99999]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_llama_cpp_answers_as_an_upstream(before_llama_cpp: tuple[RunningServer, str]) -> None:
    front, model = before_llama_cpp
    body = {"model": model, "messages": COUNT, "temperature": 0, "max_tokens": 40}
    assert fold_both_ways(front, "/v1/chat/completions", body)["choices"][0]["content"] == COUNTED
    assert message_both_ways(front, body)["content"] == [{"type": "text", "text": COUNTED, "citations": None}]
    body = {"model": model, "prompt": "Once upon a time", "temperature": 0}
    assert fold_both_ways(front, "/v1/completions", body)["choices"][0]["finish_reason"] == "length"
    refused = front.post("/v1/completions", body | {"n": 2})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
