"""The anthropic package against the running server: what an application, and Claude Code, see."""

import base64
import json
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, TextBlock, ThinkingBlock, ToolUseBlock
from pydantic import BaseModel

from tests.running_server import RunningServer

MAX_TOKENS = 60
GREEDY: dict[str, Any] = {"temperature": 0}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="not-needed", max_retries=0)


def ask(client: anthropic.Anthropic, content: Any, **parameters: Any) -> Message:
    asked: dict[str, Any] = {
        "model": "demo",
        "max_tokens": MAX_TOKENS,
        "messages": [{"role": "user", "content": content}],
        "extra_body": GREEDY,
    }
    message: Message = client.messages.create(**asked | parameters)
    return message


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


def test_counts_to_five_and_ends_its_turn(client: anthropic.Anthropic) -> None:
    message = ask(client, "Count to 5")
    assert (text_of(message), message.stop_reason, message.stop_sequence) == ("1, 2, 3, 4, 5", "end_turn", None)
    assert (message.type, message.role, message.model) == ("message", "assistant", "demo")
    assert message.usage.output_tokens == 14
    assert message._request_id


async def test_the_async_client_answers_alike(server: RunningServer) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.url, auth_token="none", max_retries=0) as client:
        message = await client.messages.create(
            model="demo",
            max_tokens=MAX_TOKENS,
            messages=[{"role": "user", "content": "Count to 5"}],
            extra_body=GREEDY,
        )
        assert text_of(message) == "1, 2, 3, 4, 5"


def test_the_stream_helper_gives_text_and_the_whole_message(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="demo",
        max_tokens=MAX_TOKENS,
        messages=[{"role": "user", "content": "Count to 5"}],
        extra_body=GREEDY,
    ) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == text_of(final) == "1, 2, 3, 4, 5"
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == 14


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    message = ask(client, "Count to 9", stop_sequences=["zebra", "5, 6"])
    assert (text_of(message), message.stop_reason, message.stop_sequence) == ("1, 2, 3, 4, ", "stop_sequence", "5, 6")


def test_the_two_limits_are_told_apart(client: anthropic.Anthropic) -> None:
    babble: dict[str, Any] = {"model": "babbler", "extra_body": GREEDY}
    assert ask(client, "Hi", max_tokens=3, **babble).stop_reason == "max_tokens"
    long = ask(client, "word " * 7900, max_tokens=20_000, **babble)
    assert long.stop_reason == "model_context_window_exceeded"
    assert long.usage.input_tokens + long.usage.output_tokens == 8192


def test_a_prompt_beyond_the_context_is_told_with_both_numbers(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 8192 maximum"):
        ask(client, "word " * 9000)


def test_a_trailing_assistant_message_is_continued(client: anthropic.Anthropic) -> None:
    messages = [{"role": "user", "content": "Count to 5"}, {"role": "assistant", "content": "1, 2,"}]
    assert text_of(ask(client, "", messages=messages)) == " 3, 4, 5"


def test_system_blocks_are_one_system_prompt(client: anthropic.Anthropic) -> None:
    def count(**system: Any) -> int:
        hi: Any = {"role": "user", "content": "Hi"}
        return client.messages.count_tokens(model="demo", messages=[hi], **system).input_tokens

    blocks = [{"type": "text", "text": "You are terse."}, {"type": "text", "text": "You are kind."}]
    assert count(system=blocks) == count(system="You are terse.\n\nYou are kind.") > count()


def test_a_tool_is_called_and_its_result_read(client: anthropic.Anthropic) -> None:
    question = "What is the weather in Oslo?"
    called = ask(client, question, tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"})
    (block,) = called.content
    assert isinstance(block, ToolUseBlock)
    assert (called.stop_reason, block.name, list(block.input)) == ("tool_use", "get_weather", ["city"])
    assert block.id.startswith("toolu_")
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": called.content},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "7 degrees"}]},
                {"type": "text", "text": "Be brief."},
            ],
        },
    ]
    answered = ask(client, "", messages=messages, tools=[WEATHER])
    assert answered.stop_reason in ("end_turn", "max_tokens", "tool_use")
    assert answered.content


def test_a_streamed_call_adds_up_to_the_same_input(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    whole = ask(client, "What is the weather in Oslo?", **asked)
    with client.messages.stream(
        model="demo",
        max_tokens=MAX_TOKENS,
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        extra_body=GREEDY,
        **asked,
    ) as stream:
        both = (whole, stream.get_final_message())
    inputs = [[block.input for block in message.content if isinstance(block, ToolUseBlock)] for message in both]
    assert inputs[0] == inputs[1]
    assert len(inputs[0]) == 1


def test_a_call_that_the_limit_cuts_ends_by_max_tokens(client: anthropic.Anthropic) -> None:
    message = ask(client, "What is the weather in Oslo?", tools=[WEATHER], tool_choice={"type": "any"}, max_tokens=12)
    assert message.stop_reason == "max_tokens"


def test_structured_output_follows_the_schema(client: anthropic.Anthropic) -> None:
    class Count(BaseModel):
        n: int

    parsed = client.messages.parse(
        model="demo",
        max_tokens=MAX_TOKENS,
        messages=[{"role": "user", "content": "Count to 5"}],
        output_format=Count,
        extra_body=GREEDY,
    )
    assert isinstance(parsed.parsed_output, Count)


def test_thoughts_are_a_block_with_a_signature(client: anthropic.Anthropic) -> None:
    message = ask(client, "Count to 5", thinking={"type": "enabled", "budget_tokens": 50})
    thought, text = message.content
    assert isinstance(thought, ThinkingBlock)
    assert isinstance(text, TextBlock)
    assert thought.thinking.strip()
    assert thought.signature
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens > 0


def test_a_budget_is_enforced(client: anthropic.Anthropic) -> None:
    message = ask(client, "Count to 5", thinking={"type": "enabled", "budget_tokens": 3})
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == 3 + 2  # and the two markers


def test_omitted_thoughts_come_back_in_their_signature(client: anthropic.Anthropic) -> None:
    thinking = {"type": "enabled", "budget_tokens": 50}
    shown = ask(client, "Count to 5", thinking=thinking)
    omitted = ask(client, "Count to 5", thinking={**thinking, "display": "omitted"})
    (thought, _), (kept, _) = omitted.content, shown.content
    assert isinstance(thought, ThinkingBlock)
    assert isinstance(kept, ThinkingBlock)
    assert thought.thinking == ""
    assert base64.b64decode(thought.signature).decode().endswith(kept.thinking)
    assert text_of(omitted) == text_of(shown)


def test_counted_tokens_are_those_of_the_answer(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {
        "system": [{"type": "text", "text": "You are terse.", "cache_control": {"type": "ephemeral"}}],
        "tools": [WEATHER],
        "thinking": {"type": "adaptive"},
        "messages": [{"role": "user", "content": f"What is the weather? {'word ' * 90}"}],
    }
    count = client.messages.count_tokens(model="demo", **asked).input_tokens
    for _ in range(2):
        usage = ask(client, "", **asked).usage
        parts = (usage.input_tokens, usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0)
        assert sum(parts) == count
    assert parts[1] > 90


def test_what_the_cache_keeps_is_told_to_those_who_mark_it(client: anthropic.Anthropic) -> None:
    def usage(marks: dict[str, Any], words: str) -> tuple[int, int | None, int | None]:
        block = {"type": "text", "text": f"{words * 60} Count to 5", **marks}
        used = ask(client, [block]).usage
        return used.input_tokens, used.cache_creation_input_tokens, used.cache_read_input_tokens

    plain_input, plain_kept, plain_read = usage({}, "plain ")
    assert (plain_kept, plain_read) == (0, 0)
    assert plain_input > 60
    marked_input, marked_kept, marked_read = usage({"cache_control": {"type": "ephemeral"}}, "marked ")
    assert (marked_input, marked_read) == (0, 0)
    assert marked_kept is not None
    assert marked_kept > 60
    again_input, again_kept, again_read = usage({"cache_control": {"type": "ephemeral"}}, "marked ")
    assert (again_input or 0) + (again_kept or 0) + (again_read or 0) == marked_kept
    assert again_read is not None
    assert again_read > 60


def test_models_are_listed_and_found(client: anthropic.Anthropic) -> None:
    models = {model.id: model for model in client.models.list(limit=1000)}
    demo = models["demo"]
    assert (demo.type, demo.lifecycle, demo.max_input_tokens) == ("model", "active", 8192)
    assert demo.created_at.year >= 2024
    assert demo.capabilities is not None
    assert demo.capabilities.image_input.supported is False
    assert client.models.retrieve("demo").display_name == "demo"


@pytest.mark.parametrize(
    ("change", "status", "kind", "named"),
    [
        ({"max_tokens": -1}, 400, "invalid_request_error", "max_tokens"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"model": "nobody"}, 404, "not_found_error", "nobody"),
        ({"extra_body": {"temperature": 5}}, 400, "invalid_request_error", "temperature"),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, 400, "invalid_request_error", "response_format"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 60}},
            400,
            "invalid_request_error",
            "thinking.budget_tokens",
        ),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tool_choice"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            400,
            "invalid_request_error",
            "tools[0].type",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, 400, "invalid_request_error", "bash_20250124"),
    ],
)
def test_refusals_are_anthropics_errors_with_the_field_named(
    client: anthropic.Anthropic, change: dict[str, Any], status: int, kind: str, named: str
) -> None:
    with pytest.raises(anthropic.APIStatusError) as refused:
        ask(client, "Hi", **change)
    body = refused.value.body
    assert isinstance(body, dict)
    assert (refused.value.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert named in body["error"]["message"]
    assert body["request_id"] == refused.value.request_id == refused.value.response.headers["request-id"]


def test_an_image_is_refused_by_its_place(client: anthropic.Anthropic) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]\.type"):
        ask(client, [image, {"type": "text", "text": "What is this?"}])


def test_server_tools_beside_client_tools_are_left_out(client: anthropic.Anthropic) -> None:
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    weather: Any = WEATHER
    asked: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
    alone = client.messages.count_tokens(**asked, tools=[weather])
    assert client.messages.count_tokens(**asked, tools=[search, weather]) == alone
    raw = client.messages.with_raw_response.create(max_tokens=1, **asked, tools=[search, weather])
    assert "web_search_20250305" in raw.headers["x-mlx-manager-warning"]


def test_hints_and_betas_are_never_a_refusal(client: anthropic.Anthropic) -> None:
    message = ask(
        client,
        "Count to 5",
        metadata={"user_id": json.dumps({"session_id": "x"})},
        service_tier="auto",
        extra_headers={"anthropic-beta": "nobody-knows-this-2031-01-01,effort-2025-11-24"},
        extra_query={"beta": "true"},
        extra_body={**GREEDY, "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
    )
    assert text_of(message) == "1, 2, 3, 4, 5"
