"""Which earlier prompt a prompt is compared with, and what is kept of it."""

from dataclasses import replace
from typing import Any

import pytest

from mlx_manager.mlx_server.protocols.base import ParseOptions
from mlx_manager.mlx_server.protocols.chat import ChatCompletions
from mlx_manager.mlx_server.protocols.completions import Completions
from mlx_manager.mlx_server.schemas.openai import ChatCompletionRequest, CompletionRequest
from mlx_manager.mlx_server.services.prompt_history import Content, PastPrompt, PromptHistory, Served, contents_of
from mlx_manager.mlx_server.types import ToolDefinition, ToolUse

CHAT = ChatCompletions()
MESSAGES = [{"role": "user", "content": "Hi"}]
HERE = Served("demo", "/models/demo", "", 1.0)


def content(*turns: str, system: str = "Be kind.", **fields: Any) -> Content:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    body = ChatCompletionRequest.model_validate({"model": "demo", "messages": messages, **fields})
    (made,) = contents_of(CHAT.parse(body, ParseOptions()))
    return made


def completion(text: str | list[int]) -> Content:
    body = CompletionRequest.model_validate({"model": "demo", "prompt": text})
    (made,) = contents_of(Completions().parse(body, ParseOptions()))
    return made


def past(made: Content) -> PastPrompt:
    return PastPrompt(made, HERE, 100)


def test_a_prompt_is_compared_with_the_latest_of_its_conversation() -> None:
    history = PromptHistory()
    first, second, other = (past(content(*turns)) for turns in (("a",), ("a", "b", "c"), ("x", "b", "z", "y", "v")))
    for name, prompt in (("1", first), ("2", second), ("3", other)):
        history.remember(None, name, prompt)
    assert history.nearest(None, content("a", "b", "c", "d", "e", system="Be rude.")) is second
    assert history.nearest(None, content("a", "b", "r")) is second
    assert history.nearest(None, content("p", "b", "r")) is None


def test_a_turn_that_many_conversations_have_makes_none_of_them_the_same() -> None:
    history = PromptHistory()
    history.remember(None, "1", past(content("Tell me of foxes", "Sure?", "Yes")))
    assert history.nearest(None, content("Tell me of wolves", "Oh?", "Yes")) is None


COUNTING = " ".join(map(str, range(200)))


@pytest.mark.parametrize(("text", "edited"), [(COUNTING, COUNTING[:600] + "end"), ([*range(200)], [*range(150), 7])])
def test_a_completion_is_compared_with_one_that_begins_alike(text: Any, edited: Any) -> None:
    history = PromptHistory()
    history.remember(None, "1", past(completion(text)))
    assert history.nearest(None, completion(edited)) is not None
    assert history.nearest(None, completion(text[5:])) is None


def test_a_key_sees_its_own_prompts_only() -> None:
    history = PromptHistory()
    history.remember("alice", "1", past(content("a")))
    assert history.find("alice", "1") is not None
    assert history.find("bob", "1") is None
    assert history.nearest("bob", content("a")) is None


def test_what_the_prompts_say_is_not_kept() -> None:
    tools = [{"type": "function", "function": {"name": "secret_tool", "parameters": {}}}]
    made = content("my secret", system="a secret system", tools=tools, chat_template_kwargs={"secret": "x"})
    assert "secret" not in repr(made)
    assert "secret" not in repr(completion("my secret " * 20))


def test_the_oldest_prompts_are_forgotten_first_and_completely() -> None:
    history = PromptHistory(max_turns=100)
    for number in range(50):
        history.remember(None, str(number), past(content(f"turn {number}", "answer", f"more {number}")))
    assert history.find(None, "49") is not None
    assert history.find(None, "0") is None
    assert history.nearest(None, content("turn 0", "x", "more 0")) is None
    assert [history.find(None, str(number)) is not None for number in range(45, 50)] == [True] * 5


def test_each_part_of_a_prompt_is_told_apart() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    plain = content("a")
    assert replace(content("a", system="Be rude."), system=plain.system) == plain
    assert replace(content("a", tools=[tool]), tools=plain.tools) == plain
    assert replace(content("a", chat_template_kwargs={"x": 1}), parameters=plain.parameters) == plain
    assert replace(content("b"), turns=plain.turns) == plain


def test_a_value_that_json_cannot_hold_is_no_failure() -> None:
    deep: dict[str, object] = {}
    for _ in range(5000):
        deep = {"x": deep}
    request = CHAT.parse(ChatCompletionRequest.model_validate({"model": "demo", "messages": MESSAGES}), ParseOptions())
    for value in ({"x": "\ud800"}, deep):
        tool = ToolDefinition("look", None, value, 1)
        (made,) = contents_of(replace(request, template_kwargs=value, tool_use=ToolUse(tools=(tool,))))
        assert made.parameters == 0
