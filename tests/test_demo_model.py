"""What the embedded model can do, on the real path: its own template, the engine, its stop tokens."""

import json
from typing import Any

import pytest

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.generator import load
from mlx_manager.mlx_server.engine.messages import Step, Submit
from mlx_manager.mlx_server.models.adapters import LlamaAdapter
from mlx_manager.mlx_server.models.tokenization import load_tokenizer
from mlx_manager.mlx_server.types import SamplingParams
from tests.running_server import RunningServer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(demo_model_path())


@pytest.fixture(scope="module")
def core() -> EngineCore:
    return EngineCore(load(demo_model_path()))


def answer(core: EngineCore, tokenizer: Any, messages: list[dict[str, Any]], **template: Any) -> str:
    """The answer with the token that ended it written out."""
    adapter = LlamaAdapter()
    prompt = tokenizer.encode(adapter.apply_chat_template(tokenizer, messages, **template), add_special_tokens=False)
    core.submit(Submit(0, prompt, 200, adapter.get_stop_tokens(tokenizer), SamplingParams(seed=0, temperature=0)))
    tokens: list[int] = []
    while len(core):
        tokens += [token for event in core.step() if isinstance(event, Step) for token in event.tokens]
    return str(tokenizer.decode(tokens))


def test_tool_call_is_llama_json_and_ends_the_message_and_not_the_turn(core: EngineCore, tokenizer: Any) -> None:
    question = {"role": "user", "content": "What is the weather in Oslo?"}
    called = answer(core, tokenizer, [question], tools=[WEATHER])
    assert called.endswith("<|eom_id|>")
    call = json.loads(called.removesuffix("<|eom_id|>"))
    assert call == {"name": "get_weather", "parameters": {"city": "Oslo"}}

    tool_call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    told = answer(
        core,
        tokenizer,
        [
            question,
            {"role": "assistant", "content": "", "tool_calls": [tool_call]},
            {"role": "tool", "tool_call_id": "1", "content": '{"temperature": 7, "condition": "rainy"}'},
        ],
        tools=[WEATHER],
    )
    assert told.endswith("<|eot_id|>")
    assert "7" in told
    assert "rainy" in told


def test_model_thinks_when_the_template_says_so_and_not_by_default(core: EngineCore, tokenizer: Any) -> None:
    question = {"role": "user", "content": "Count to 4"}
    assert answer(core, tokenizer, [question]) == "1, 2, 3, 4<|eot_id|>"
    thought = answer(core, tokenizer, [question], enable_thinking=True)
    assert thought.startswith("<think>")
    assert "</think>" in thought
    assert thought.endswith("1, 2, 3, 4<|eot_id|>")


def test_model_remembers_a_name_over_turns(server: RunningServer) -> None:
    turns = ["My name is Greta.", "Nice to meet you, Greta!", "What is my name?"]
    messages = [
        {"role": role, "content": text} for role, text in zip(["user", "assistant", "user"], turns, strict=True)
    ]
    body = {"model": "demo", "messages": messages, "temperature": 0}
    response = server.post("/v1/chat/completions", body).json()
    assert "Greta" in response["choices"][0]["message"]["content"]


def test_system_prompt_makes_a_pirate(server: RunningServer) -> None:
    messages = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Hello!"}]
    body = {"model": "demo", "messages": messages, "temperature": 0}
    assert "rr" in server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]


def test_draft_model_shares_the_tokenizer_and_all_of_it_is_small() -> None:
    folder = demo_model_path()
    assert (folder / "draft" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    draft = EngineCore(load(folder / "draft"))
    assert draft.vocabulary_size == EngineCore(load(folder)).vocabulary_size
    assert sum(file.stat().st_size for file in folder.rglob("*.*")) < 8 * 1024**2
