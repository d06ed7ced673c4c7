"""A model over several ranks answers as it does in one process."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_manager.demo import demo_model_path
from tests.prometheus import scrape
from tests.running_server import RunningServer, chunks_of, eventually, running_server
from tests.small_models import make_random_model

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "size": {"enum": ["small", "large"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
LETTERS = "Alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa. " * 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves the demo model alone and over two ranks, and a random Qwen alone and over a pipeline of two."""
    folder = tmp_path_factory.mktemp("ranks")
    qwen = make_random_model(folder / "qwen", model_type="qwen2", more={"num_hidden_layers": 3})
    config = folder / "mlx-manager.toml"
    config.write_text(
        f"""
        [[models]]
        id = "alone"
        path = "{demo_model_path()}"
        [[models]]
        id = "tensor"
        path = "{demo_model_path()}"
        ranks = 2
        [[models]]
        id = "qwen-alone"
        path = "{qwen}"
        [[models]]
        id = "pipeline"
        path = "{qwen}"
        ranks = 2
        parallel = "pipeline"
        """
    )
    with running_server(folder, config=config, default_model="tensor", preload="alone") as running:
        yield running


def ask(server: RunningServer, model: str, content: str, **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 12}
    answer = server.post("/v1/chat/completions", body | fields)
    assert answer.status_code == 200, answer.text
    received: dict[str, Any] = answer.json()
    return received


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(("alone", "together"), [("alone", "tensor"), ("qwen-alone", "pipeline")])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1, "seed": 5},
        {"temperature": 1, "seed": 5, "top_p": 0.9, "frequency_penalty": 0.5},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}},
        {"logprobs": True, "top_logprobs": 2},
    ],
    ids=["greedy", "seeded", "nucleus", "grammar", "logprobs"],
)
def test_same_answer_as_in_one_process(
    server: RunningServer, alone: str, together: str, fields: dict[str, Any]
) -> None:
    one, several = (ask(server, model, "Name a large city.", **fields) for model in (alone, together))
    assert text_of(several) == text_of(one)
    assert several["usage"]["completion_tokens"] == one["usage"]["completion_tokens"]
    if "logprobs" in fields:
        logprobs = [
            [token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]] for answer in (one, several)
        ]
        assert logprobs[1] == pytest.approx(logprobs[0], abs=1e-3)


def test_sixteen_clients_at_once_get_the_answers_of_one_process(server: RunningServer) -> None:
    questions = [f"What is {number} plus {number}?" for number in range(16)]
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(lambda question: text_of(ask(server, "tensor", question, max_tokens=6)), questions))
        alone = list(clients.map(lambda question: text_of(ask(server, "alone", question, max_tokens=6)), questions))
    assert together == alone


def test_long_and_short_prompts_together_get_the_answers_of_one_process(server: RunningServer) -> None:
    questions = [LETTERS * 12 + "Which is first?", *(f"Count to {number}." for number in range(3, 6))]
    with ThreadPoolExecutor(4) as clients:
        together = list(clients.map(lambda question: text_of(ask(server, "tensor", question)), questions))
        alone = list(clients.map(lambda question: text_of(ask(server, "alone", question)), questions))
    assert together == alone


def test_prompt_with_a_stored_prefix_is_prefilled_from_it_on_every_rank(server: RunningServer) -> None:
    first = ask(server, "tensor", LETTERS + "Which is first?")
    again = ask(server, "tensor", LETTERS + "Which is last?")
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 32
    assert text_of(again) == text_of(ask(server, "alone", LETTERS + "Which is last?"))
    assert text_of(first) == text_of(ask(server, "alone", LETTERS + "Which is first?"))


def test_cancelled_stream_frees_its_row_on_every_rank(server: RunningServer) -> None:
    body = {"model": "tensor", "messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 2000}
    with server.stream("/v1/chat/completions", body | {"min_tokens": 1900}) as payloads:
        next(payloads)
    eventually(lambda: scrape(server).value("running_sequences", model="tensor"), lambda running: running == 0)
    assert text_of(ask(server, "tensor", "Hello")) == text_of(ask(server, "alone", "Hello"))


def test_stream_ends_as_in_one_process(server: RunningServer) -> None:
    body = {"model": "tensor", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8}
    with server.stream("/v1/chat/completions", body) as payloads:
        chunks = chunks_of(payloads)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text == text_of(ask(server, "alone", "Hello", max_tokens=8))


def test_metrics_name_the_memory_and_times_of_each_rank(server: RunningServer) -> None:
    ask(server, "tensor", "Hello")
    now = eventually(
        lambda: scrape(server), lambda found: found.value("rank_step_seconds_total", model="tensor", rank="1") > 0
    )
    for rank in ("0", "1"):
        assert now.value("rank_memory_bytes", model="tensor", rank=rank) > 2**20
        assert now.value("rank_step_seconds_total", model="tensor", rank=rank) > 0
        assert now.value("rank_wait_seconds_total", model="tensor", rank=rank) > 0
    assert now.value("rank_memory_bytes", model="alone", rank="0") == 0
