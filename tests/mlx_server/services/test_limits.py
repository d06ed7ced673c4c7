"""Limits of the model, and the order of defaults, seen over HTTP."""

from pathlib import Path
from typing import Any

import pytest

from tests.running_server import RunningServer, running_server

SHORT = {"model": "short", "prompt": "1 2 3 4", "temperature": 0}


def error_of(server: RunningServer, path: str, body: dict[str, Any]) -> tuple[int, str, str]:
    response = server.post(path, body)
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


def test_prompt_that_fills_the_context_is_refused_with_the_numbers(server: RunningServer) -> None:
    response = server.post("/v1/completions", SHORT | {"prompt": "1" * 40})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert "41 tokens" in error["message"]  # with its <|begin_of_text|>
    assert "32" in error["message"]


def test_max_tokens_is_cut_to_what_the_context_has_left(server: RunningServer) -> None:
    usage = server.post("/v1/completions", SHORT | {"max_tokens": 1000}).json()["usage"]
    assert usage["total_tokens"] == 32


def test_no_limit_is_what_the_context_has_left_and_not_the_models_own(server: RunningServer) -> None:
    usage = server.post("/v1/completions", SHORT | {"max_tokens": -1}).json()["usage"]
    assert usage["total_tokens"] == 32


def test_top_p_zero_is_greedy(server: RunningServer) -> None:
    body = {"model": "babbler", "prompt": "1 2", "max_tokens": 12, "temperature": 2, "seed": 1}
    drawn, nucleus, greedy = (
        server.post("/v1/completions", body | fields).json()["choices"][0]["text"]
        for fields in ({}, {"top_p": 0}, {"temperature": 0})
    )
    assert drawn != nucleus == greedy


@pytest.mark.parametrize(
    ("parameter", "value"), [("top_k", 100_000), ("logit_bias", {"2048": 1}), ("logit_bias", {"-1": 1})]
)
def test_what_the_vocabulary_does_not_have_is_refused_by_name(
    server: RunningServer, parameter: str, value: object
) -> None:
    assert error_of(server, "/v1/completions", SHORT | {parameter: value}) == (400, "invalid_request", parameter)


def test_chat_without_a_chat_template_is_refused_and_completions_work(server: RunningServer) -> None:
    body = {"model": "short", "messages": [{"role": "user", "content": "Hi"}]}
    assert error_of(server, "/v1/chat/completions", body) == (400, "chat_template_missing", "model")
    assert server.post("/v1/completions", SHORT).status_code == 200


def test_both_limits_at_once_are_refused(server: RunningServer) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    refused = error_of(server, "/v1/chat/completions", body | {"max_completion_tokens": 6})
    assert refused == (400, "invalid_request", "max_completion_tokens")


def test_logit_bias_forces_a_token(server: RunningServer) -> None:
    free = server.post("/v1/completions", SHORT | {"max_tokens": 5}).json()["choices"][0]["text"]
    forced = server.post("/v1/completions", SHORT | {"max_tokens": 5, "logit_bias": {"20": 100}}).json()
    assert len(set(forced["choices"][0]["text"])) == 1
    assert forced["choices"][0]["text"] != free


def test_generation_config_decides_where_the_request_says_nothing(server: RunningServer) -> None:
    def text(**parameters: object) -> tuple[str, int]:
        body = server.post("/v1/completions", {"model": "short", "prompt": "1 2", **parameters}).json()
        return body["choices"][0]["text"], body["usage"]["completion_tokens"]

    assert len({text() for _ in range(3)}) == 1  # greedy: random weights never agree at temperature 1
    assert text()[1] == 7
    assert len({text(temperature=1) for _ in range(3)}) == 3
    assert text(max_tokens=4)[1] == 4


def test_a_prompt_that_memory_cannot_hold_is_refused_with_the_numbers_and_a_longer_answer_is_cut(
    tmp_path: Path, babbler: Path
) -> None:
    """0.005 GB for the babbler's megabyte of weights and its KV caches, 512 bytes for each token."""
    body = {"model": "babbler", "prompt": "x " * 2000, "temperature": 0}
    with running_server(tmp_path, default_model=babbler, max_memory_gb=0.005) as small:
        fits = {"temperature": 2, "stop": ["e", "a", " "], "max_tokens": 7000}
        assert small.post("/v1/completions", body | fits).status_code == 200
        unlimited = body | {"max_tokens": -1, "temperature": 2, "stop": ["e", "a", " "]}
        assert small.post("/v1/completions", unlimited).status_code == 200
        answers = [small.post("/v1/completions", body | {"max_tokens": 5}) for _ in range(3)]
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [5] * 3
        error = small.post("/v1/completions", body | {"prompt": "x " * 7000}).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert "512 bytes" in error["message"]
