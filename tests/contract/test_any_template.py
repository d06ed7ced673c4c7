"""Chats and tools with models whose chat templates know no tools, no system messages, or no two turns of one role."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.folding import of_chat_chunks, of_chat_response, same
from tests.running_server import RunningServer, chunks_of, running_server
from tests.small_models import make_random_llama

TURN = "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>' + m['content'] + '<|eot_id|>' }}"
REFUSE = "{{ raise_exception('no') }}"
EACH = "{% for m in messages %}"
TEMPLATES = {
    "plain": f"{EACH}{TURN}{{% endfor %}}",
    "first-only": f"{EACH}{{% if m.role == 'system' and not loop.first %}}{REFUSE}{{% endif %}}{TURN}{{% endfor %}}",
    "alternating": f"{EACH}{{% if (m.role == 'user') == loop.index is divisibleby 2 %}}{REFUSE}{{% endif %}}"
    f"{TURN}{{% endfor %}}",
}
HARMONY = f"{EACH}{{{{ '<|start|>' + m.role + '<|channel|>final<|message|>' + (m.content or '') }}}}{{% endfor %}}"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "size": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["color", "size"],
    "additionalProperties": False,
}
PAINT = {"type": "function", "function": {"name": "paint_door", "description": "Paint the door", "parameters": SCHEMA}}
CALL = {"id": "c1", "type": "function", "function": {"name": "paint_door", "arguments": '{"color": "red", "size": 1}'}}
HELLO = {"role": "user", "content": "Hello!"}
REQUIRED: dict[str, Any] = {
    "tools": [PAINT],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "n": 4,
    "temperature": 1,
    "seed": 3,
    "max_tokens": 300,
}
"""Random weights come to an end of their call in one choice or another."""


def say(role: str, content: str | None, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("templates")
    for name, template in (*TEMPLATES.items(), ("harmony", HARMONY)):
        (make_random_llama(folder / name) / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("log"), models_dir=folder) as server:
        yield server


def ask(server: RunningServer, model: str, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 4, **fields}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    received: dict[str, Any] = answer.json()
    return received


def capability(server: RunningServer, model: str) -> object:
    return httpx.get(f"{server.url}/v1/models/{model}").json()["capabilities"]["tools"]


@pytest.mark.parametrize("model", TEMPLATES)
def test_a_required_call_is_made_and_its_result_is_taken(served: RunningServer, model: str) -> None:
    choices = ask(served, model, [HELLO], **REQUIRED)["choices"]
    called = next(choice for choice in choices if choice["finish_reason"] == "tool_calls")
    (call,) = called["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
    result = say("tool", "done", tool_call_id=call["id"])
    ask(served, model, [HELLO, called["message"], result], tools=[PAINT])
    ask(served, model, [HELLO, called["message"], result, say("assistant", "It is red."), HELLO])
    assert capability(served, model) == "prompted"


def test_the_stream_of_a_prompted_call_folds_to_the_answer(served: RunningServer) -> None:
    body = {"model": "plain", "messages": [HELLO], **REQUIRED}
    whole = of_chat_response(served.post("/v1/chat/completions", body).json())
    with served.stream("/v1/chat/completions", body) as payloads:
        folded = of_chat_chunks(chunks_of(payloads))
    for choice in [*whole["choices"], *folded["choices"]]:
        for call in choice["tool_calls"]:
            call["id"] = ""
    assert any(choice["tool_calls"] for choice in whole["choices"])
    assert same(folded["choices"], whole["choices"])


def test_tools_are_shown_to_a_model_whose_template_does_not_show_them(served: RunningServer) -> None:
    without, shown = (ask(served, "plain", [HELLO], tools=tools)["usage"]["prompt_tokens"] for tools in (None, [PAINT]))
    assert shown > without + 50
    assert ask(served, "plain", [HELLO], tools=[PAINT], tool_choice="none")["usage"]["prompt_tokens"] == without


@pytest.mark.parametrize("model", TEMPLATES)
@pytest.mark.parametrize(
    "messages",
    [
        [say("system", "a"), say("system", "b"), HELLO],
        [say("developer", "a"), HELLO],
        [say("system", "a"), HELLO, say("system", "b"), HELLO],
        [say("system", "a"), HELLO, say("assistant", "Hi"), HELLO, say("developer", "b")],
        [say("system", "a")],
        [HELLO, HELLO],
        [say("assistant", "Hi"), HELLO],
        [HELLO, say("assistant", None, tool_calls=[CALL]), say("tool", "done", tool_call_id="c1"), say("system", "b")],
        [HELLO, {"role": "assistant", "tool_calls": [CALL]}, say("tool", "done", tool_call_id="c1"), HELLO],
    ],
    ids=lambda messages: "-".join(message["role"] for message in messages),
)
def test_any_order_of_roles_is_answered(served: RunningServer, model: str, messages: list[dict[str, Any]]) -> None:
    longer = [{**message, "content": "x" * 100} if message.get("content") else message for message in messages]
    short, long = (ask(served, model, chat)["usage"]["prompt_tokens"] for chat in (messages, longer))
    texts = sum(1 for message in messages if message.get("content"))
    assert long >= short + 10 * texts  # no message is left out


def test_a_late_system_message_leaves_the_prefix_cache_useful(served: RunningServer) -> None:
    chat = [say("system", "Be kind. " * 100), say("user", "How are you today?"), say("assistant", "I am fine.")]
    ask(served, "first-only", [*chat, HELLO])
    usage = ask(served, "first-only", [*chat, say("system", "Be brief."), HELLO])["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 100


def test_with_the_settings_tools_are_refused_and_late_system_messages_hoisted(folder: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=folder, tool_prompt="false", hoist_system_messages="true") as server:
        body = {"model": "plain", "messages": [HELLO], "max_tokens": 1}
        refused = server.post("/v1/chat/completions", {**body, "tools": [PAINT]})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, "tools")
        assert "MLX_SERVER_TOOL_PROMPT" in error["message"]
        assert server.post("/v1/chat/completions", {**body, "tools": [PAINT], "tool_choice": "none"}).status_code == 200
        assert (capability(server, "plain"), capability(server, "demo")) == (False, "native")
        chat = [say("system", "Be kind. " * 100), say("user", "How are you today?"), say("assistant", "I am fine.")]
        ask(server, "first-only", [*chat, HELLO])
        usage = ask(server, "first-only", [*chat, say("system", "Be brief."), HELLO])["usage"]
        system_alone = ask(server, "first-only", chat[:2])["usage"]["prompt_tokens"]
        assert usage["prompt_tokens_details"]["cached_tokens"] < system_alone


REGEX = {"type": "grammar", "syntax": "regex", "definition": "[0-9]{3}"}
CODE = {"type": "custom", "name": "code", "description": "Run it", "format": REGEX}
CODED: dict[str, Any] = {
    "input": [
        HELLO,
        {"type": "custom_tool_call", "call_id": "c1", "name": "code", "input": "123"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
        {"role": "developer", "content": "Go on."},
    ],
    "tools": [CODE],
    "tool_choice": {"type": "custom", "name": "code"},
    "reasoning": {"effort": "none"},
    "max_output_tokens": 200,
}


@pytest.mark.parametrize("model", TEMPLATES)
def test_custom_tools_are_called_with_any_template(served: RunningServer, model: str) -> None:
    response = served.post("/v1/responses", {"model": model, **CODED})
    assert response.status_code == 200, response.text
    (call,) = response.json()["output"]
    assert (call["type"], call["name"], len(call["input"]), call["input"].isdigit()) == (
        "custom_tool_call",
        "code",
        3,
        True,
    )


def test_a_model_whose_calls_have_another_layout_is_shown_a_function(served: RunningServer) -> None:
    """Its grammar is for the text itself, which is inside of JSON here."""
    response = served.post("/v1/responses", {"model": "harmony", **CODED, "max_output_tokens": 8})
    assert response.status_code == 200, response.text
    assert "tool 'code': its grammar is not enforced" in response.headers["x-mlx-manager-warning"]
