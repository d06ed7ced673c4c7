"""Events to what goes over the wire."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.protocols.chat import ChatBuilder, to_request
from mlx_manager.mlx_server.protocols.wire import JsonObject, system_fingerprint
from mlx_manager.mlx_server.schemas import openai as schemas
from mlx_manager.mlx_server.types import (
    ChatRequest,
    Choice,
    ChoiceFinished,
    Completed,
    FinishReason,
    Generation,
    GenerationEvent,
    GenerationEvents,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    TopLogprob,
    Usage,
)
from tests import folding

HI = [{"role": "user", "content": "Hi"}]


def request(**fields: Any) -> ChatRequest:
    body = schemas.ChatCompletionRequest.model_validate({"model": "demo", "messages": HI, **fields})
    return to_request(body, default_max_tokens=4096)


REASONS: st.SearchStrategy[FinishReason] = st.sampled_from(["stop", "length", "tool_calls"])
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 3,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
ANSWER: list[GenerationEvent] = [
    Started(),
    TextDelta(0, "Hello"),
    TextDelta(0, " 😀"),
    ChoiceFinished(0, "stop", None),
    Completed(Usage(12, 3, 4, 1)),
]


def chunks_of(made: ChatRequest, events: list[GenerationEvent]) -> list[JsonObject]:
    builder = ChatBuilder(made)
    return [chunk for event in events for chunk in builder.event(event)]


def with_usage() -> ChatRequest:
    return request(stream=True, stream_options={"include_usage": True})


def test_a_stream_is_the_role_then_the_text_then_one_finish_reason() -> None:
    choices = [chunk["choices"] for chunk in chunks_of(request(stream=True), ANSWER)]
    assert choices == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "Hello"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": " 😀"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
    ]


def test_the_usage_comes_last_with_no_choices_when_it_was_asked_for() -> None:
    *others, last = chunks_of(with_usage(), ANSWER)
    assert last["choices"] == []
    assert last["usage"] == USAGE
    assert [chunk["usage"] for chunk in others] == [None] * 4
    assert all(chunk["choices"] for chunk in others)


def test_a_stream_that_was_not_asked_for_usage_does_not_speak_of_it() -> None:
    assert all("usage" not in chunk for chunk in chunks_of(request(stream=True), ANSWER))


def test_the_response_is_one_message_with_its_usage() -> None:
    made = request()
    generation = Generation((Choice(0, "Hello 😀", "length"),), Usage(12, 3, 4, 1))
    assert ChatBuilder(made).response(generation) == {
        "id": made.id,
        "object": "chat.completion",
        "created": made.created,
        "model": "demo",
        "system_fingerprint": system_fingerprint("demo"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello 😀", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": USAGE,
    }


def test_identity_is_the_same_in_every_chunk_and_in_the_response() -> None:
    made = with_usage()
    bodies = [*chunks_of(made, ANSWER), ChatBuilder(made).response(Generation((), Usage(0, 0)))]
    assert {(body["id"], body["created"], body["model"]) for body in bodies} == {(made.id, made.created, "demo")}


@pytest.mark.parametrize("made", [request(stream=True), with_usage()])
def test_every_chunk_is_a_chunk_to_our_schema_and_to_openais(made: ChatRequest) -> None:
    for chunk in chunks_of(made, ANSWER):
        schemas.ChatCompletionChunk.model_validate(chunk)
        assert ChatCompletionChunk.model_validate(chunk).to_dict() == chunk


def test_the_response_is_a_response_to_our_schema_and_to_openais() -> None:
    body = ChatBuilder(request()).response(Generation((Choice(0, "Hi", "stop"),), Usage(1, 2)))
    assert schemas.ChatCompletionResponse.model_validate(body).model_dump(exclude_unset=True) == body
    assert ChatCompletion.model_validate(body).to_dict() == body


TEXT = st.text(max_size=4)
LOGPROBS = st.builds(
    TokenLogprob,
    TEXT,
    st.floats(-20, 0),
    st.binary(max_size=3),
    st.lists(st.builds(TopLogprob, TEXT, st.floats(-20, 0), st.binary(max_size=3)), max_size=2).map(tuple),
    st.integers(0, 9),
)


@st.composite
def choice_events(draw: st.DrawFn, index: int) -> list[GenerationEvent]:
    """Reasoning, text and tool calls of one choice, with logprobs, and its end."""
    fields = (st.just(index), TEXT, st.lists(LOGPROBS, max_size=2).map(tuple))
    deltas = st.one_of(st.builds(TextDelta, *fields), st.builds(ReasoningDelta, *fields))
    events: list[GenerationEvent] = [*draw(st.lists(deltas, max_size=4))]
    for call in range(draw(st.integers(0, 2))):
        events.append(ToolCallStarted(index, call, draw(TEXT), draw(TEXT)))
        events += [ToolCallDelta(index, call, draw(TEXT)) for _ in range(draw(st.integers(0, 2)))]
    return [*events, ChoiceFinished(index, draw(REASONS), None)]


@st.composite
def generations(draw: st.DrawFn) -> list[GenerationEvent]:
    """The events of three choices, interleaved."""
    left = [draw(choice_events(index)) for index in range(3)]
    events: list[GenerationEvent] = [Started()]
    while any(left):
        events.append(draw(st.sampled_from([choice for choice in left if choice])).pop(0))
    count = st.integers(0, 10_000)
    return [*events, Completed(Usage(draw(count), draw(count), draw(count), draw(count)))]


@pytest.mark.anyio
@given(events=generations())
async def test_folding_the_stream_gives_the_response(events: list[GenerationEvent]) -> None:
    async def generate() -> GenerationEvents:
        for event in events:
            yield event

    options = {"include_usage": True}
    made = request(stream=True, stream_options=options, n=3, logprobs=True)
    response = ChatBuilder(made).response(await fold(generate()))
    assert folding.of_chat_chunks(chunks_of(made, events)) == folding.of_chat_response(response)
    assert ChatCompletion.model_validate(response).to_dict() == response


def test_every_choice_of_a_stream_begins_with_its_role() -> None:
    begun = chunks_of(request(stream=True, n=2), [Started()])
    assert [chunk["choices"] for chunk in begun] == [
        [{"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]
        for i in (0, 1)
    ]


def test_logprobs_name_tokens_with_their_bytes_and_the_likeliest_at_their_place() -> None:
    top = (TopLogprob("\u00e9", -0.25, "\u00e9".encode()), TopLogprob("e", -1.5, b"e"))
    entry = TokenLogprob("\u00e9", -0.25, "\u00e9".encode(), top, 0)
    (chunk,) = chunks_of(request(stream=True, logprobs=True, top_logprobs=2), [TextDelta(0, "\u00e9", (entry,))])
    (choice,) = ChatCompletionChunk.model_validate(chunk).choices
    assert choice.logprobs is not None
    assert choice.logprobs.to_dict() == {
        "content": [
            {
                "token": "\u00e9",
                "logprob": -0.25,
                "bytes": [0xC3, 0xA9],
                "top_logprobs": [
                    {"token": "\u00e9", "logprob": -0.25, "bytes": [0xC3, 0xA9]},
                    {"token": "e", "logprob": -1.5, "bytes": [0x65]},
                ],
            }
        ],
        "refusal": None,
    }


def test_reasoning_and_tool_calls_are_apart_from_the_content() -> None:
    calls = (ToolCall("1", "f", "{}"), ToolCall("2", "g", '{"a": 1}'))
    generation = Generation((Choice(0, "", "tool_calls", reasoning="Hm.", tool_calls=calls),), Usage(1, 2))
    (choice,) = ChatCompletion.model_validate(ChatBuilder(request()).response(generation)).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.to_dict()["reasoning_content"] == choice.message.to_dict()["reasoning"] == "Hm."
    assert [call.to_dict() for call in choice.message.tool_calls or []] == [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "2", "type": "function", "function": {"name": "g", "arguments": '{"a": 1}'}},
    ]


def test_fingerprint_is_one_for_a_model_and_another_for_another() -> None:
    assert system_fingerprint("demo") == system_fingerprint("demo") != system_fingerprint("other")
    assert system_fingerprint("demo").startswith("fp_")
