from dataclasses import fields, replace

import pytest

from mlx_manager.mlx_server.errors import UnsupportedParameter
from mlx_manager.mlx_server.protocols.base import Request
from mlx_manager.mlx_server.services.upstreams.bodies import upstream_body
from mlx_manager.mlx_server.types import (
    ChatRequest,
    ChatTurn,
    CompletionRequest,
    Grammar,
    SamplingOverrides,
    ToolCall,
    ToolDefinition,
    ToolUse,
)
from mlx_manager.mlx_server.upstream_settings import UpstreamKind

CHAT = ChatRequest(
    id="chatcmpl-1",
    created=1,
    model="up/llama",
    sampling=SamplingOverrides(),
    max_tokens=None,
    default_max_tokens=4096,
    stop=(),
    include_usage=False,
    turns=(ChatTurn("user", "Hi"),),
)
COMPLETION = CompletionRequest(
    id="cmpl-1",
    created=1,
    model="up/llama",
    sampling=SamplingOverrides(),
    max_tokens=None,
    default_max_tokens=16,
    stop=(),
    include_usage=False,
    prompts=("Once",),
    echo=False,
)
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}

WEATHER = ToolDefinition("weather", "In a city", {"type": "object"}, 20)
ADD = ToolDefinition("add", None, {"type": "object"}, 20)
WEATHER_JSON = {
    "type": "function",
    "function": {"name": "weather", "description": "In a city", "parameters": {"type": "object"}},
}
ADD_JSON = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

NOT_SENT = {"id", "created", "model", "default_max_tokens", "include_usage", "record", "compare_with", "keep_off_disk"}
"""This server's own business, or tested below."""
ASKED: dict[str, tuple[object, dict[str, object]]] = {
    "sampling": (
        SamplingOverrides(temperature=0.0, top_p=0.5, top_k=0, min_p=0.1, seed=7, logit_bias={5: -1.0}),
        {"temperature": 0.0, "top_p": 0.5, "top_k": 0, "min_p": 0.1, "seed": 7, "logit_bias": {5: -1.0}},
    ),
    "max_tokens": (9, {"max_tokens": 9}),
    "stop": (("a", "b"), {"stop": ("a", "b")}),
    "n": (2, {"n": 2}),
    "stop_token_ids": ((1, 2), {"stop_token_ids": (1, 2)}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "min_tokens": (3, {"min_tokens": 3}),
    "include_stop": (True, {"include_stop_str_in_output": True}),
    "skip_special_tokens": (False, {"skip_special_tokens": False}),
    "keep_alive_seconds": (60.0, {"keep_alive": 60.0}),
    "grammar": (Grammar("json_object", "", "response_format"), {"response_format": {"type": "json_object"}}),
}
"""By a request's field: a value, and what an OpenAI upstream is told of it."""
ASKED_OF_CHAT: dict[str, tuple[object, dict[str, object]]] = ASKED | {
    "logprobs": (3, {"logprobs": True, "top_logprobs": 3}),
    "turns": ((ChatTurn("system", "Be brief"),), {"messages": [{"role": "system", "content": "Be brief"}]}),
    "add_generation_prompt": (False, {"add_generation_prompt": False}),
    "continue_final_message": (True, {"continue_final_message": True}),
    "tool_use": (
        ToolUse(tools=(WEATHER, ADD), callable=(WEATHER, ADD), required=True, parallel=False),
        {"tools": [WEATHER_JSON, ADD_JSON], "tool_choice": "required", "parallel_tool_calls": False},
    ),
    "thinking_budget": (9, {"thinking_budget": 9}),
    "template_kwargs": ({"lang": "no"}, {"chat_template_kwargs": {"lang": "no"}}),
}
ASKED_OF_COMPLETION: dict[str, tuple[object, dict[str, object]]] = ASKED | {
    "logprobs": (0, {"logprobs": 0}),
    "prompts": (("a", (1, 2)), {"prompt": ("a", (1, 2))}),
    "echo": (True, {"echo": True}),
    "suffix": ("end", {"suffix": "end"}),
}
LLAMACPP_LACKS = [
    "n",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "keep_alive",
    "add_generation_prompt",
    "continue_final_message",
    "thinking_budget",
    "echo",
    "suffix",
]
MLXLM_LACKS = [
    name for name in [*LLAMACPP_LACKS, "logprobs", "response_format"] if name != "include_stop_str_in_output"
]


def asking(request: Request, field: str, value: object) -> Request:
    return replace(request, **{field: value})  # type: ignore[arg-type]


def test_nothing_but_the_messages_is_sent_of_a_request_that_asks_for_nothing() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert upstream_body(CHAT, "openai", "llama") == {"model": "llama", **STREAMED, "messages": messages}


@pytest.mark.parametrize("field", [field.name for field in fields(ChatRequest) if field.name not in NOT_SENT])
def test_each_field_of_a_chat_is_sent(field: str) -> None:
    """A new field needs a line in ASKED_OF_CHAT, and one in the body."""
    value, told = ASKED_OF_CHAT[field]
    body = upstream_body(asking(CHAT, field, value), "openai", "llama")
    assert body == {**upstream_body(CHAT, "openai", "llama"), **told}


@pytest.mark.parametrize(
    "field", [field.name for field in fields(CompletionRequest) if field.name not in NOT_SENT | {"best_of"}]
)
def test_each_field_of_a_completion_is_sent(field: str) -> None:
    value, told = ASKED_OF_COMPLETION[field]
    body = upstream_body(asking(COMPLETION, field, value), "openai", "llama")
    assert body == {**upstream_body(COMPLETION, "openai", "llama"), **told}


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [*(("llamacpp", name) for name in LLAMACPP_LACKS), *(("mlxlm", name) for name in MLXLM_LACKS)],
)
def test_what_a_kind_of_server_does_not_have_is_refused_by_name(kind: UpstreamKind, lacking: str) -> None:
    for request, asked in ((CHAT, ASKED_OF_CHAT), (COMPLETION, ASKED_OF_COMPLETION)):
        for field, (value, told) in asked.items():
            if lacking in told:
                with pytest.raises(UnsupportedParameter, match=f"does not support '{lacking}'") as raised:
                    upstream_body(asking(request, field, value), kind, "llama")
                assert raised.value.param == lacking


@pytest.mark.parametrize("kind", ["llamacpp", "mlxlm"])
@pytest.mark.parametrize("prompts", [("a", "b"), ((1, 2),)])
def test_prompts_that_are_not_one_text_are_refused_where_they_cannot_be_read(
    kind: UpstreamKind, prompts: tuple[str | tuple[int, ...], ...]
) -> None:
    with pytest.raises(UnsupportedParameter) as raised:
        upstream_body(replace(COMPLETION, prompts=prompts), kind, "llama")
    assert raised.value.param == "prompt"


@pytest.mark.parametrize("kind", ["llamacpp", "mlxlm", "openai"])
def test_best_of_several_is_refused(kind: UpstreamKind) -> None:
    with pytest.raises(UnsupportedParameter) as raised:
        upstream_body(replace(COMPLETION, best_of=2), kind, "llama")
    assert raised.value.param == "best_of"


def test_llama_cpp_has_another_name_for_the_repetition_penalty() -> None:
    request = replace(CHAT, sampling=SamplingOverrides(repetition_penalty=1.1))
    assert upstream_body(request, "llamacpp", "llama")["repeat_penalty"] == 1.1
    assert upstream_body(request, "mlxlm", "llama")["repetition_penalty"] == 1.1


def test_mlx_lm_is_told_of_no_stop_strings_which_are_looked_for_here() -> None:
    body = upstream_body(replace(CHAT, stop=("a",), include_stop=True), "mlxlm", "llama")
    assert not {"stop", "include_stop_str_in_output"} & body.keys()


def test_limit_where_none_is_given_is_this_servers_but_for_chats_with_openai() -> None:
    assert [upstream_body(CHAT, kind, "m").get("max_tokens") for kind in ("llamacpp", "mlxlm", "openai")] == [
        *(4096, 4096, None)
    ]
    assert upstream_body(COMPLETION, "openai", "m")["max_tokens"] == 16


@pytest.mark.parametrize(("effort", "enabled"), [("high", True), ("none", False)])
def test_reasoning_effort_goes_to_openai_as_it_came(effort: str, enabled: bool) -> None:
    kwargs = {"reasoning_effort": effort, "enable_thinking": enabled}
    body = upstream_body(replace(CHAT, template_kwargs=kwargs), "openai", "llama")
    assert (body["reasoning_effort"], "chat_template_kwargs" in body) == (effort, False)
    assert upstream_body(replace(CHAT, template_kwargs=kwargs), "mlxlm", "m")["chat_template_kwargs"] == kwargs


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        (
            Grammar("json_schema", '{"type": "object"}', "response_format.json_schema.schema"),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
        (Grammar("regex", "a+", "guided_regex"), {"guided_regex": "a+"}),
        (Grammar("choice", '["a", "b"]', "guided_choice"), {"guided_choice": ["a", "b"]}),
        (Grammar("lark", 'start: "a"', "guided_grammar"), {"guided_grammar": 'start: "a"'}),
    ],
)
def test_shape_of_an_answer_goes_to_openai_under_the_name_of_its_kind(
    grammar: Grammar, told: dict[str, object]
) -> None:
    body = upstream_body(replace(CHAT, grammar=grammar), "openai", "llama")
    assert body == {**upstream_body(CHAT, "openai", "llama"), **told}


def test_tools_that_may_be_called_are_sent_without_a_choice_and_one_that_must_be_by_its_name() -> None:
    free = ToolUse(tools=(WEATHER,), callable=(WEATHER,))
    assert upstream_body(replace(CHAT, tool_use=free), "mlxlm", "llama")["tools"] == [WEATHER_JSON]
    forced = ToolUse(tools=(WEATHER, ADD), callable=(ADD,), required=True, parallel=False)
    body = upstream_body(replace(CHAT, tool_use=forced), "llamacpp", "llama")
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    with pytest.raises(UnsupportedParameter) as raised:
        upstream_body(replace(CHAT, tool_use=forced), "mlxlm", "llama")
    assert raised.value.param == "tool_choice"


def test_turns_of_tools_are_sent_with_their_calls_ids_and_thoughts() -> None:
    turns = (
        ChatTurn("assistant", None, tool_calls=(ToolCall("1", "f", '{"a": 1}'),), reasoning="Hm"),
        ChatTurn("tool", "7", name="f", tool_call_id="1"),
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert upstream_body(replace(CHAT, turns=turns), "openai", "llama")["messages"] == [
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm"},
        {"role": "tool", "content": "7", "name": "f", "tool_call_id": "1"},
    ]
