"""A small trained model whose chat template knows no tools: SmolLM2-135M-Instruct, which `make test-models` builds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_agent_requests import CHATS, REFUSED, REQUESTS
from tests.running_server import RunningServer, chunks_of, running_server

FOLDER = Path(__file__).parents[2] / ".cache" / "models" / "smollm2"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="`make test-models` builds the model first")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("smollm2"), default_model=FOLDER) as server:
        yield server


def ask(server: RunningServer, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    body = {"model": "smollm2", "messages": messages, "temperature": 0, "max_tokens": 100, **fields}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def test_it_calls_a_tool_and_takes_its_result(smollm2: RunningServer) -> None:
    called = ask(smollm2, [QUESTION], tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    assert called["finish_reason"] == "tool_calls"
    (call,) = called["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call["id"], "content": '{"temperature": 19, "sky": "sunny"}'}
    told = ask(smollm2, [QUESTION, called["message"], result], tools=[WEATHER])
    assert told["finish_reason"] == "stop"
    assert "sunny" in told["message"]["content"]


def test_it_answers_without_tools(smollm2: RunningServer) -> None:
    answer = ask(smollm2, [{"role": "user", "content": "What is the capital of France?"}])
    assert answer["message"]["content"] == "The capital of France is Paris."


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_that_a_client_sends_is_answered(smollm2: RunningServer, name: str) -> None:
    body = {**REQUESTS[name]["body"], "model": "smollm2"}
    body.pop(REFUSED.get(name), None)
    body["max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"] = 8
    if body.get("stream"):
        with smollm2.stream("/v1/chat/completions", body) as payloads:
            assert chunks_of(payloads)
    else:
        assert smollm2.post("/v1/chat/completions", body).status_code == 200


def test_three_ranks_answer_as_one_process_does_and_two_cannot_share_its_heads(
    smollm2: RunningServer, tmp_path: Path
) -> None:
    config = tmp_path / "mlx-manager.toml"
    config.write_text(f'[[models]]\nid = "two"\npath = "{FOLDER}"\nranks = 2\n')
    question = [{"role": "user", "content": "What is the capital of France?"}]
    with running_server(tmp_path, config=config, default_model=FOLDER, ranks=3) as server:
        refused = server.post("/v1/chat/completions", {"model": "two", "messages": question})
        assert refused.status_code == 503
        assert "its 9 attention heads and 3 key-value heads cannot be divided" in refused.json()["error"]["message"]
        assert "Use 3 ranks." in refused.json()["error"]["message"]
        together = ask(server, question, max_tokens=8)
    assert together["message"] == ask(smollm2, question, max_tokens=8)["message"]
