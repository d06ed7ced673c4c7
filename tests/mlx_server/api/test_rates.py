"""Rates over HTTP and for the openai client; the buckets by a clock of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_manager.mlx_server.api.rates import MAX_BUCKETS, Buckets, duration
from tests.running_server import HANG_SECONDS, RunningServer, eventually, running_server

COUNT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Count to 5"}], "temperature": 0}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(
        tmp_path_factory.mktemp("limited"),
        api_keys="anna=sk-anna,bob=sk-bob,carl=sk-carl,dora=sk-dora",
        rate_limit_requests_per_minute=3,
        rate_limit_tokens_per_minute=600,
    ) as running:
        yield running


def client(server: RunningServer, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def ask(server: RunningServer, key: str, **more: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/chat/completions", json=COUNT | more, headers=headers, timeout=HANG_SECONDS)


def test_the_request_beyond_the_rate_is_refused_as_openai_does(limited: RunningServer) -> None:
    anna = client(limited, "sk-anna")
    remaining = []
    for stream in (False, True, False):
        raw = anna.chat.completions.with_raw_response.create(**COUNT, stream=stream)
        assert raw.headers["x-ratelimit-limit-requests"] == "3"
        remaining.append(int(raw.headers["x-ratelimit-remaining-requests"]))
    assert remaining == [2, 1, 0]
    with pytest.raises(openai.RateLimitError) as refused:
        anna.chat.completions.create(**COUNT)
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
    headers = refused.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 20
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"].endswith("s")


def test_a_key_is_limited_for_itself_and_for_generations_alone(limited: RunningServer) -> None:
    statuses = [ask(limited, "sk-bob").status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    headers = {"Authorization": "Bearer sk-bob"}
    assert [httpx.get(f"{limited.url}/v1/models", headers=headers).status_code for _ in range(5)] == [200] * 5
    assert ask(limited, "sk-carl").status_code == 200


def test_who_has_used_the_tokens_waits(limited: RunningServer) -> None:
    first = ask(limited, "sk-dora", max_tokens=900, ignore_eos=True)
    used = first.json()["usage"]["total_tokens"]
    assert used > 600
    assert int(first.headers["x-ratelimit-remaining-tokens"]) == 600  # they are known when it has ended
    refused = ask(limited, "sk-dora")
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "tokens", "rate_limit_exceeded")
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert int(refused.headers["x-ratelimit-remaining-requests"]) == 2  # what is refused is not counted
    owed = (used - 600) / 10
    assert owed - 30 <= int(refused.headers["retry-after"]) <= owed + 2


def test_what_a_client_that_left_has_used_counts(limited: RunningServer) -> None:
    headers = {"Authorization": "Bearer sk-carl"}
    body = COUNT | {"n": 8, "max_tokens": 400, "ignore_eos": True, "stream": True}
    with httpx.stream(
        "POST", f"{limited.url}/v1/chat/completions", json=body, headers=headers, timeout=HANG_SECONDS
    ) as stream:
        for number, _ in enumerate(stream.iter_lines()):
            if number > 400:
                break
    left = eventually(lambda: ask(limited, "sk-carl"), lambda answer: answer.status_code in (200, 429), seconds=20)
    assert int(left.headers["x-ratelimit-remaining-tokens"]) < 560


def test_without_keys_an_address_is_limited_and_without_limits_nobody(tmp_path: Path, server: RunningServer) -> None:
    body = {"model": "nobody", "prompt": "a"}
    with running_server(tmp_path, wait=False, rate_limit_requests_per_minute=1) as running:
        running.wait_for_log("Listening")
        answers = [running.post("/v1/completions", body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [404, 429]
    free = [server.post("/v1/completions", body) for _ in range(5)]
    assert {answer.status_code for answer in free} == {404}
    assert not [name for answer in free for name in answer.headers if "ratelimit" in name]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_fills_up_evenly_and_no_further() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    assert buckets.balance("a", 60).remaining == 60
    buckets.take("a", 90, 60)
    owing = buckets.balance("a", 60)
    assert (owing.remaining, owing.wait_seconds, owing.reset_seconds) == (0, 31, 90)
    clock.now = 31
    assert (buckets.balance("a", 60).remaining, buckets.balance("a", 60).wait_seconds) == (1, 0)
    clock.now = 1000
    assert (buckets.balance("a", 60).remaining, buckets.balance("a", 60).reset_seconds) == (60, 0)
    assert buckets.balance("b", 60).remaining == 60


def test_a_new_limit_counts_at_once() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    buckets.balance("a", 1000)
    assert buckets.balance("a", 10).remaining == 10


def test_names_without_end_take_no_memory_without_end() -> None:
    buckets = Buckets(Clock())
    buckets.take("first", 5, 10)
    for number in range(MAX_BUCKETS):
        buckets.take(str(number), 5, 10)
    assert buckets.balance("first", 10).remaining == 10
    assert buckets.balance(str(MAX_BUCKETS - 1), 10).remaining == 5


@given(steps=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=20))
def test_nobody_takes_more_than_the_rate_over_time(steps: list[tuple[float, float]]) -> None:
    clock, taken = Clock(), 0.0
    buckets = Buckets(clock)
    for seconds, amount in steps:
        clock.now += seconds
        if buckets.balance("a", 10).remaining >= amount:
            buckets.take("a", amount, 10)
            taken += amount
    assert taken <= 10 + clock.now * 10 / 60 + 1e-6


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0s"), (0.02, "20ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (360, "6m0s"), (3661, "1h1m1s")],
)
def test_durations_are_written_as_go_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written
