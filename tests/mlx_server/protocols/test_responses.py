"""Bodies of the Responses API to requests: items to turns, tools of all types, and what is refused."""

import json
from typing import Any

import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.base import ParseOptions
from mlx_manager.mlx_server.protocols.responses import Responses
from mlx_manager.mlx_server.protocols.responses_parameters import RESPONSES
from mlx_manager.mlx_server.protocols.responses_turns import IMAGE_NOTE, encode_reasoning
from mlx_manager.mlx_server.protocols.responses_writer import ResponsesChat
from mlx_manager.mlx_server.schemas.responses import InputTokensRequest, ResponsesRequest
from mlx_manager.mlx_server.types import CUSTOM_PARAMETERS, ChatTurn, Grammar, ToolCall

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
LOOK = {"type": "function", "name": "look", "parameters": CITY, "strict": True}
PATCH = {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: A"}}
CREW = {"type": "namespace", "name": "crew", "description": "", "tools": [{"type": "function", "name": "spawn"}]}
SEARCH = {"type": "web_search"}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hm", "annotations": []}]}
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "sun"}
THOUGHTS = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "So."}]}


def parse(body_input: Any = "Hi", *, reject_unknown: bool = False, **fields: Any) -> ResponsesChat:
    body = ResponsesRequest.model_validate({"model": "demo", "input": body_input, **fields})
    return Responses().parse(body, ParseOptions(reject_unknown=reject_unknown))


def turns(*items: Any, **fields: Any) -> tuple[ChatTurn, ...]:
    return parse(list(items), **fields).turns


def test_a_plain_request() -> None:
    request = parse("Hi", instructions="Be brief.", temperature=0, top_p=0.5, max_output_tokens=7)
    assert request.turns == (ChatTurn("system", "Be brief."), ChatTurn("user", "Hi"))
    assert (request.sampling.temperature, request.sampling.top_p, request.max_tokens) == (0, 0.5, 7)
    assert request.id.startswith("resp_")
    assert request.prompt_field == "input"


def test_an_empty_text_is_a_message() -> None:
    assert parse("").turns == (ChatTurn("user", ""),)


@pytest.mark.parametrize("body_input", [[], None, [SEARCH]])
def test_no_message_at_all_is_refused(body_input: Any) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(body_input)
    assert refusal.value.param == "input"


def test_messages_of_all_roles_and_shapes() -> None:
    parts = [{"type": "input_text", "text": "A"}, {"type": "input_text", "text": "B"}]
    assert turns(
        {"role": "system", "content": "S"},
        {"type": "message", "role": "developer", "content": parts},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Hm"},
        {**SAID, "content": [{"type": "refusal", "refusal": "No"}]},
    ) == (
        ChatTurn("system", "S"),
        ChatTurn("system", "A\n\nB"),
        ChatTurn("user", "A\n\nB"),
        ChatTurn("assistant", "Hm"),
        ChatTurn("assistant", "No"),
    )


def test_thoughts_a_message_and_its_calls_are_one_turn() -> None:
    custom = {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": 'a "b"\n'}
    output = {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "ok"}]}
    calls = (ToolCall("c1", "look", "{}"), ToolCall("c2", "patch", json.dumps({"input": 'a "b"\n'})))
    assert turns(THOUGHTS, SAID, CALL, custom, RESULT, output) == (
        ChatTurn("assistant", "Hm", tool_calls=calls, reasoning="So."),
        ChatTurn("tool", "sun", tool_call_id="c1"),
        ChatTurn("tool", "ok", tool_call_id="c2"),
    )


def test_thoughts_behind_a_call_begin_the_next_turn() -> None:
    assert turns(CALL, THOUGHTS, SAID) == (
        ChatTurn("assistant", None, tool_calls=(ToolCall("c1", "look", "{}"),)),
        ChatTurn("assistant", "Hm", reasoning="So."),
    )


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({"content": None, "encrypted_content": encode_reasoning("Sealed.")}, "Sealed."),
        ({"content": [], "encrypted_content": "opaque"}, None),
        ({"content": None, "summary": [{"type": "summary_text", "text": "Sum."}]}, "Sum."),
        (
            {"summary": [{"type": "summary_text", "text": "Sum."}], "encrypted_content": encode_reasoning("Sealed.")},
            "So.",
        ),
    ],
)
def test_thoughts_are_read_from_wherever_they_are(fields: dict[str, Any], reasoning: str | None) -> None:
    assert turns({**THOUGHTS, **fields}, SAID) == (ChatTurn("assistant", "Hm", reasoning=reasoning),)


@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "mcp_list_tools", "id": "m_1", "server_label": "x", "tools": [{"name": "y", "input_schema": {}}]},
        {"type": "mcp_call", "id": "m_2", "name": "y", "arguments": "{}", "output": {"any": "thing"}},
        {"type": "local_shell_call", "call_id": "c", "action": {"command": ["ls"], "env": {}, "type": "exec"}},
        {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "", "stderr": ""}]},
        {"type": "tool_search_call", "arguments": {"query": "x"}, "execution": "client"},
        {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}},
        {"type": "compaction", "encrypted_content": "x"},
        {"type": "of_tomorrow", "content": 7},
    ],
)
def test_what_hosted_tools_leave_behind_is_left_out_and_counted(item: dict[str, Any]) -> None:
    request = parse([item, {"role": "user", "content": "Hi"}, item])
    assert request.turns == (ChatTurn("user", "Hi"),)
    assert request.record.ignored_items == 2
    (warning,) = request.record.warnings
    assert f"2 items of type {item['type']!r}" in warning


def test_an_image_in_a_result_stays_as_a_note() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "high"}
    assert turns(CALL, {**RESULT, "output": [image]})[1].content == IMAGE_NOTE


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0]"),
        ({"role": "user"}, "input[0].content"),
        ({"content": "Hi"}, "input[0].role"),
        ({"type": "function_call", "call_id": "c", "name": "x"}, "input[0].arguments"),
        ({"type": "function_call", "name": "x", "arguments": "{}"}, "input[0].call_id"),
        ({"type": "custom_tool_call", "call_id": "c", "name": "x"}, "input[0].input"),
        ({"type": "function_call_output", "call_id": "c"}, "input[0].output"),
        ({"type": "item_reference", "id": "msg_1"}, "input[0].id"),
    ],
)
def test_an_item_that_cannot_be_read_is_refused_by_its_place(item: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse([item])
    assert refusal.value.param == param


def test_tools_of_all_types() -> None:
    request = parse(tools=[LOOK, PATCH, CREW, SEARCH])
    look, patch, spawn = request.tool_use.tools
    assert (look.name, look.parameters, look.strict, look.custom) == ("look", CITY, True, False)
    assert (patch.name, patch.parameters, patch.custom) == ("patch", CUSTOM_PARAMETERS, True)
    assert patch.grammar == Grammar("lark", "start: A", "tools[1].format.definition")
    assert spawn.name == "spawn"
    (warning,) = request.record.warnings
    assert "tools[3] is left out" in warning
    assert "'web_search'" in warning


def test_names_that_two_namespaces_have_are_told_apart_and_put_back() -> None:
    tools = [LOOK, {**CREW, "tools": [LOOK]}, {**CREW, "name": "band", "tools": [LOOK]}]
    request = parse([{**CALL, "namespace": "band"}], tools=tools)
    assert [tool.name for tool in request.tool_use.tools] == ["look", "crew__look", "band__look"]
    assert request.turns[0].tool_calls[0].name == "band__look"
    assert request.options.by_name["crew__look"].namespace == "crew"


def test_tools_may_come_in_the_input() -> None:
    items = [
        {"type": "additional_tools", "role": "developer", "tools": [LOOK, CREW]},
        {"role": "user", "content": "Hi"},
    ]
    assert [tool.name for tool in parse(items).tool_use.tools] == ["look", "spawn"]


@pytest.mark.parametrize(
    ("choice", "shown", "callable_names", "required"),
    [
        ("auto", 2, ["look", "patch"], False),
        ("none", 0, [], False),
        ("required", 2, ["look", "patch"], True),
        ({"type": "function", "name": "look"}, 2, ["look"], True),
        ({"type": "custom", "name": "patch"}, 2, ["patch"], True),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "patch"}]},
            2,
            ["patch"],
            True,
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}, SEARCH]},
            1,
            ["look"],
            False,
        ),
    ],
)
def test_how_tools_may_be_called(choice: Any, shown: int, callable_names: list[str], required: bool) -> None:
    use = parse(tools=[LOOK, PATCH], tool_choice=choice).tool_use
    assert len(use.tools) == shown
    assert [tool.name for tool in use.callable] == callable_names
    assert use.required is required


def test_one_call_at_a_time() -> None:
    assert not parse(tools=[LOOK], parallel_tool_calls=False).tool_use.parallel
    assert parse(tools=[LOOK]).tool_use.parallel


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [SEARCH]}, "tools[0].type"),
        ({"tools": [{**LOOK, "name": "not a name"}]}, "tools[0].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [LOOK, LOOK]}, "tools[1].name"),
        ({"tools": [{**LOOK, "parameters": {"type": "string"}}]}, "tools[0].parameters"),
        ({"tools": [{**PATCH, "format": {"type": "grammar", "syntax": "bnf", "definition": ""}}]}, "tools[0].format"),
        ({"tools": [{**PATCH, "format": {"type": "grammar", "syntax": "lark"}}]}, "tools[0].format.definition"),
        ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [LOOK], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        (
            {"tools": [LOOK], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
            "tool_choice.tools",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)
def test_tools_and_formats_that_cannot_be_served_are_refused_by_their_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(**fields)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("text_format", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar("json_object", "", "text.format")),
        (
            {"type": "json_schema", "name": "x", "schema": CITY, "strict": True},
            Grammar("json_schema", json.dumps(CITY), "text.format.schema", True),
        ),
    ],
)
def test_a_format_is_a_grammar(text_format: dict[str, Any], grammar: Grammar | None) -> None:
    assert parse(text={"format": text_format, "verbosity": "low"}).grammar == grammar


@pytest.mark.parametrize(
    ("reasoning", "kwargs", "summarizes"),
    [
        ({"effort": "high", "summary": "auto"}, {"reasoning_effort": "high", "enable_thinking": True}, True),
        ({"effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}, False),
        ({"summary": None, "generate_summary": "concise"}, {}, True),
        ({"effort": None, "context": "all_turns"}, {}, False),
    ],
)
def test_effort_and_summary(reasoning: dict[str, Any], kwargs: dict[str, Any], summarizes: bool) -> None:
    request = parse(reasoning=reasoning)
    assert request.template_kwargs == kwargs
    assert request.options.summarizes is summarizes


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [({}, None), ({"top_logprobs": 3}, 3), ({"include": ["message.output_text.logprobs"]}, 0), ({"include": []}, None)],
)
def test_logprobs(fields: dict[str, Any], logprobs: int | None) -> None:
    assert parse(**fields).logprobs == logprobs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", True),
        ("conversation", "conv_1"),
        ("prompt", {"id": "pmpt_1"}),
        ("moderation", {"model": "omni-moderation-latest"}),
        ("context_management", [{"type": "compaction"}]),
        ("image", {"context_compression": "enabled"}),
        ("messages", []),
        ("stop", ["x"]),
        ("max_tokens", 5),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        parse(**{field: value})
    assert refusal.value.param == field


@pytest.mark.parametrize(
    "fields",
    [
        {"client_metadata": {"thread_id": "x"}},
        {"prompt_cache_key": "x", "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}},
        {"service_tier": "auto", "safety_identifier": "x", "user": "y", "metadata": {"a": "b"}, "max_tool_calls": 3},
        {"background": False, "store": False, "stream": True, "stream_options": {"include_obfuscation": True}},
    ],
)
def test_what_changes_no_answer_is_no_refusal(fields: dict[str, Any]) -> None:
    parse(reject_unknown=True, **fields)


def test_an_unknown_field_is_ignored_unless_the_settings_refuse_it() -> None:
    parse(of_tomorrow=1)
    with pytest.raises(UnsupportedParameter) as refusal:
        parse(reject_unknown=True, of_tomorrow=1)
    assert refusal.value.param == "of_tomorrow"


def test_every_field_of_the_sdk_is_accounted_for() -> None:
    known = {*ResponsesRequest.model_fields, *RESPONSES.ignored, *RESPONSES.refused}
    assert {*ResponseCreateParamsBase.__annotations__} - known == set()


def test_tokens_are_counted_of_a_body_without_limits() -> None:
    body = InputTokensRequest.model_validate({"model": "demo", "input": "Hi", "instructions": "Be brief."})
    assert len(Responses().parse(body, ParseOptions()).turns) == 2


def test_a_response_repeats_the_request() -> None:
    echo = parse(tools=[LOOK, PATCH], tool_choice="required", metadata={"a": "b"}, store=False).echo
    assert echo["tools"] == [LOOK, PATCH]
    assert (echo["tool_choice"], echo["metadata"], echo["store"], echo["temperature"]) == (
        "required",
        {"a": "b"},
        False,
        1.0,
    )
