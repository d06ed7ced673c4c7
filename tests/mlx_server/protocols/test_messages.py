"""Bodies of Messages to requests: each field is used, refused by its name, or on the list of ignored ones."""

import base64
from typing import Any, get_args, get_type_hints

import pytest
from anthropic.types import (
    DocumentBlockParam,
    MessageParam,
    OutputConfigParam,
    SearchResultBlockParam,
    TextBlockParam,
    ThinkingBlockParam,
    ToolParam,
    ToolReferenceBlockParam,
    ToolResultBlockParam,
    ToolUseBlockParam,
    message_create_params,
)

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.base import ParseOptions
from mlx_manager.mlx_server.protocols.messages import Messages
from mlx_manager.mlx_server.protocols.messages_parameters import MESSAGES
from mlx_manager.mlx_server.protocols.messages_turns import signature
from mlx_manager.mlx_server.protocols.messages_writer import MessagesChat
from mlx_manager.mlx_server.schemas import anthropic
from mlx_manager.mlx_server.types import ChatTurn, ToolCall

TOOL: dict[str, Any] = {"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}


def parse(reject_unknown: bool = False, **fields: Any) -> MessagesChat:
    body = {"model": "demo", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return Messages().parse(anthropic.MessagesRequest.model_validate(body), ParseOptions(4096, reject_unknown))


def turns(*messages: dict[str, Any], **fields: Any) -> tuple[ChatTurn, ...]:
    return parse(messages=list(messages), **fields).turns


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


@pytest.mark.parametrize(
    ("typed", "shape", "place"),
    [
        (message_create_params.MessageCreateParamsStreaming, anthropic.MessagesRequest, ""),
        *((message, anthropic.Message, "messages[].") for message in get_args(MessageParam)),
        (ToolParam, anthropic.Tool, "tools[]."),
        (OutputConfigParam, anthropic.OutputConfig, "output_config."),
        *(
            (block, anthropic.Block, "messages[].content[].")
            for block in (
                TextBlockParam,
                ThinkingBlockParam,
                ToolUseBlockParam,
                ToolResultBlockParam,
                ToolReferenceBlockParam,
                DocumentBlockParam,
                SearchResultBlockParam,
            )
        ),
    ],
)
def test_every_field_of_the_sdk_is_accounted_for(typed: Any, shape: Any, place: str) -> None:
    names = get_type_hints(typed).keys() - shape.model_fields.keys()
    assert {f"{place}{name}" for name in names} <= MESSAGES.ignored | MESSAGES.refused.keys()


def test_a_plain_request() -> None:
    made = parse(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["END"], system="Be kind.")
    assert made.turns == (ChatTurn("system", "Be kind."), ChatTurn("user", "Hi"))
    assert (made.max_tokens, made.stop, made.sampling.temperature, made.sampling.top_k) == (100, ("END",), 0.5, 40)
    assert (made.add_generation_prompt, made.continue_final_message) == (True, False)


def test_results_become_tool_turns_before_the_text_of_their_message() -> None:
    called = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look", "input": {"at": "ö"}}]}
    results = user(
        text("Go on."),
        {"type": "tool_result", "tool_use_id": "a", "content": "seen"},
        {"type": "tool_result", "tool_use_id": "b", "content": [text("one"), text("two")], "is_error": True},
        {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "tool_reference", "tool_name": "look"}]},
        {"type": "tool_result", "tool_use_id": "d"},
        text("Please."),
    )
    assert turns(called, results)[1:] == (
        ChatTurn("tool", "seen", tool_call_id="a"),
        ChatTurn("tool", "Error: one\n\ntwo", tool_call_id="b"),
        ChatTurn("tool", "The tool look is available.", tool_call_id="c"),
        ChatTurn("tool", "", tool_call_id="d"),
        ChatTurn("user", "Go on.\n\nPlease."),
    )


def test_an_assistants_blocks_are_one_turn() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "of another server"},
        {"type": "redacted_thinking", "data": "c2VjcmV0"},
        text("I "),
        text("look."),
        {"type": "tool_use", "id": "a", "name": "look", "input": {"at": "it"}},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": {"type": "web_search_tool_result_error"}},
    ]
    call = ToolCall("a", "look", '{"at": "it"}')
    made = turns({"role": "assistant", "content": blocks}, user(text("Well?")))
    assert made[0] == ChatTurn("assistant", "I look.", tool_calls=(call,), reasoning="Hm.")


@pytest.mark.parametrize(
    ("given", "thoughts"),
    [
        (signature("Hm."), "Hm."),
        (signature(""), None),
        ("", None),
        ("not base64!", None),
        (base64.b64encode(b"\xff\xfe").decode(), None),
        (base64.b64encode(b"mlx-manager:\xff").decode(), None),
    ],
)
def test_thoughts_that_were_not_shown_are_read_from_their_signature(given: str, thoughts: str | None) -> None:
    block = {"type": "thinking", "thinking": "", "signature": given}
    (turn, _) = turns({"role": "assistant", "content": [block, text("Yes.")]}, user(text("Why?")))
    assert turn.reasoning == thoughts


@pytest.mark.parametrize(
    ("block", "content"),
    [
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Prose."}}, "Prose."),
        (
            {"type": "document", "title": "A", "context": "B", "source": {"type": "content", "content": [text("C")]}},
            "A\nB\nC",
        ),
        ({"type": "search_result", "title": "A", "source": "http://x", "content": [text("B")]}, "A\nhttp://x\nB"),
    ],
)
def test_documents_and_search_results_are_text(block: dict[str, Any], content: str) -> None:
    assert turns(user(block)) == (ChatTurn("user", content),)


def test_a_trailing_assistant_message_is_the_beginning_of_the_answer() -> None:
    begun = parse(messages=[user(text("Hi")), {"role": "assistant", "content": "Well,"}])
    assert (begun.add_generation_prompt, begun.continue_final_message) == (False, True)
    empty = parse(messages=[user(text("Hi")), {"role": "assistant", "content": ""}])
    assert (empty.turns, empty.continue_final_message) == ((ChatTurn("user", "Hi"),), False)


def test_system_messages_keep_their_place() -> None:
    made = turns(user(text("Hi")), {"role": "system", "content": [text("It is noon.")]}, system="Be kind.")
    assert [turn.role for turn in made] == ["system", "user", "system"]


@pytest.mark.parametrize(
    ("fields", "kwargs", "budget", "shown"),
    [
        ({}, {}, None, True),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}, None, True),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, {}, None, False),
        ({"thinking": {"type": "between_tools"}}, {}, None, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 7}}, {"enable_thinking": True}, 7, True),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}, None, True),
    ],
)
def test_thinking_and_effort(
    fields: dict[str, Any], kwargs: dict[str, object], budget: int | None, shown: bool
) -> None:
    made = parse(**fields)
    assert (dict(made.template_kwargs), made.thinking_budget, made.shows_reasoning) == (kwargs, budget, shown)


@pytest.mark.parametrize(
    ("choice", "callable_tools", "required", "parallel"),
    [
        (None, 2, False, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, 2, False, False),
        ({"type": "any"}, 2, True, True),
        ({"type": "tool", "name": "other"}, 1, True, True),
        ({"type": "none"}, 0, False, True),
    ],
)
def test_how_tools_may_be_called(choice: Any, callable_tools: int, required: bool, parallel: bool) -> None:
    other = {**TOOL, "name": "other", "type": "custom", "defer_loading": True, "input_examples": [{}]}
    use = parse(tools=[TOOL, SEARCH, other], tool_choice=choice).tool_use
    assert (len(use.callable), use.required, use.parallel) == (callable_tools, required, parallel)


def test_an_output_format_is_a_grammar_under_both_of_its_names() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    new, old = parse(output_config={"format": form}).grammar, parse(output_format=form).grammar
    assert new is not None
    assert old is not None
    assert (new.kind, new.source, new.param) == ("json_schema", '{"type": "object"}', "output_config.format.schema")
    assert (old.source, old.param) == (new.source, "output_format.schema")


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"system": [{**text("Be kind."), "cache_control": {"type": "ephemeral"}}]},
        {"messages": [user({**text("Hi"), "cache_control": {"type": "ephemeral"}})]},
        {"tools": [{**TOOL, "cache_control": {"type": "ephemeral"}}]},
    ],
)
def test_a_mark_of_the_cache_is_seen_wherever_it_stands(fields: dict[str, Any]) -> None:
    assert parse(**fields).marks_cache
    assert not parse().marks_cache


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "x"}},
        {"service_tier": "auto"},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919", "trigger": {"type": "input_tokens"}}]}},
        {"tools": []},
        {"mcp_servers": []},
        {"diagnostics": {"previous_message_id": "msg_1"}},
        {"of_no_protocol": 1},
    ],
)
def test_what_changes_no_answer_is_no_refusal(fields: dict[str, Any]) -> None:
    assert parse(**fields).turns == parse().turns


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"stop": "END"}, "stop"),
        ({"n": 2}, "n"),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management.edits[0].type"),
        ({"tools": [SEARCH]}, "tools[0].type"),
        ({"tools": [TOOL, SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}}, "tools[1].type"),
        ({"tools": [TOOL, {"type": "text_editor_20250728", "name": "edit"}]}, "tools[1].type"),
        ({"tools": [{"name": "look"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "look here", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "look", "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "look"}}, "tool_choice"),
        ({"tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text"),
        ({"messages": [user({"type": "image", "source": {"type": "url"}})]}, "messages[0].content[0].type"),
        ({"messages": [user({"type": "document"})]}, "messages[0].content[0].source"),
        (
            {"messages": [user({"type": "document", "source": {"type": "base64", "data": "x"}})]},
            "messages[0].content[0].source.type",
        ),
        (
            {"messages": [user({"type": "search_result", "title": "A", "source": "B"})]},
            "messages[0].content[0].content",
        ),
        ({"messages": [user({"type": "tool_result"})]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [user({"type": "tool_use", "id": "a", "name": "b"})]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "look"}]}, user(text("Hi"))]},
            "messages[0].content[0].id",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look"}]}]},
            "messages",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(**fields)
    assert refused.value.param == param


def test_unknown_fields_are_refused_where_the_setting_says_so() -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        parse(reject_unknown=True, messages=[user({**text("Hi"), "of_no_protocol": 1})])
    assert refused.value.param == "messages[0].content[0].of_no_protocol"


def test_the_refused_names_of_other_protocols_say_nothing_here() -> None:
    assert "context_management" not in MESSAGES.refused
    assert parse(prompt_logprobs=3).turns
