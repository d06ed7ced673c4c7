import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from pydantic import ValidationError

from mlx_manager.mlx_server.errors import InvalidRequest, ServerError, UnsupportedParameter
from mlx_manager.mlx_server.protocols.chat import ChatBuilder, to_request
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.schemas import openai as schemas
from mlx_manager.mlx_server.types import (
    ChatRequest,
    ChatTurn,
    Choice,
    ChoiceFinished,
    Completed,
    FinishReason,
    Generation,
    GenerationEvent,
    GenerationEvents,
    SamplingOverrides,
    Started,
    TextDelta,
    Usage,
    fold,
)

HI = [{"role": "user", "content": "Hi"}]


def request(**fields: Any) -> ChatRequest:
    body = schemas.ChatCompletionRequest.model_validate({"model": "demo", "messages": HI, **fields})
    return to_request(body, default_max_tokens=4096)


def turns(*messages: dict[str, Any]) -> tuple[ChatTurn, ...]:
    return request(messages=list(messages)).turns


def refusal(**fields: Any) -> ServerError:
    with pytest.raises(ServerError) as refused:
        request(**fields)
    return refused.value


def test_what_is_not_given_is_left_to_the_model_and_the_server() -> None:
    made = request()
    assert (made.sampling, made.max_tokens) == (SamplingOverrides(), None)
    assert (made.stop, made.include_usage, made.default_max_tokens) == ((), False, 4096)


def test_every_field_is_used() -> None:
    made = request(max_tokens=3, stop=["a", "b"], stream_options={"include_usage": True})
    assert (made.model, made.turns) == ("demo", (ChatTurn("user", "Hi"),))
    assert (made.max_tokens, made.stop, made.include_usage) == (3, ("a", "b"), True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -7),
        ("temperature", 0.0),
        ("top_p", 0.5),
        ("top_k", 40),
        ("top_k", 0),
        ("min_p", 0.1),
        ("repetition_penalty", 1.2),
        ("frequency_penalty", -2.0),
        ("presence_penalty", 2.0),
    ],
)
def test_a_sampling_parameter_reaches_the_engine_under_its_name(name: str, value: Any) -> None:
    assert request(**{name: value}).sampling == replace(SamplingOverrides(), **{name: value})


def test_logit_bias_names_tokens_by_their_ids() -> None:
    assert request(logit_bias={"7": -100, "0": 1.5}).sampling.logit_bias == {7: -100, 0: 1.5}


def test_top_k_minus_one_means_all_tokens_as_zero_does() -> None:
    assert request(top_k=-1).sampling == request(top_k=0).sampling


def test_max_completion_tokens_is_the_new_name_of_max_tokens() -> None:
    assert request(max_completion_tokens=5).max_tokens == 5
    assert refusal(max_completion_tokens=5, max_tokens=6).param == "max_completion_tokens"


@pytest.mark.parametrize(("stop", "expected"), [("END", ("END",)), (["a"], ("a",)), ([], ()), (None, ())])
def test_stop_is_one_string_or_several(stop: object, expected: tuple[str, ...]) -> None:
    assert request(stop=stop).stop == expected


@pytest.mark.parametrize(
    "name",
    [
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "presence_penalty",
        "logit_bias",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "stream",
        "stream_options",
        "n",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "response_format",
        "user",
    ],
)
def test_null_means_that_a_field_is_absent(name: str) -> None:
    made, bare = request(**{name: None}), request()
    assert replace(made, id=bare.id, created=bare.created) == bare


@pytest.mark.parametrize("fields", [{"n": 2}, {"logprobs": True}, {"tools": [{"type": "function"}]}])
def test_a_parameter_that_is_not_built_is_refused_by_name(fields: dict[str, Any]) -> None:
    refused = refusal(**fields)
    assert isinstance(refused, UnsupportedParameter)
    assert refused.param == next(iter(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 5.0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"seed": 2**63},
        {"top_k": -2},
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"frequency_penalty": 2.5},
        {"presence_penalty": -3},
        {"logit_bias": {"7": 101}},
        {"logit_bias": {"hello": 1}},
        {"stop": ""},
        {"stop": ["a"] * 17},
        {"messages": []},
        {"messages": [{"role": "king", "content": "Hi"}]},
        {"messages": "Hi"},
        {"model": ""},
        {"model": None},
    ],
)
def test_a_body_that_breaks_the_schema_is_no_body(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(**fields)


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "max_tokens", "seed", "presence_penalty"])
def test_a_bool_is_no_number(name: str) -> None:
    with pytest.raises(ValidationError):
        request(**{name: True})


def test_the_roles_are_those_that_chat_templates_know() -> None:
    roles = [{"role": role, "content": role} for role in ("system", "developer", "user", "assistant")]
    assert [turn.role for turn in turns(*roles)] == ["system", "system", "user", "assistant"]
    assert [turn.content for turn in turns(*roles)] == ["system", "developer", "user", "assistant"]


def test_a_speakers_name_is_kept() -> None:
    assert turns({"role": "user", "content": "Hi", "name": "Ann"}) == (ChatTurn("user", "Hi", "Ann"),)


@pytest.mark.parametrize("role", ["tool", "function"])
def test_a_role_that_is_not_built_is_refused_by_its_place(role: str) -> None:
    refused = refusal(messages=[*HI, {"role": role, "content": "1", "tool_call_id": "a", "name": "f"}])
    assert isinstance(refused, UnsupportedParameter)
    assert refused.param == "messages[1].role"


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "One "}, {"type": "text", "text": ""}, {"type": "text", "text": "😀"}]
    assert turns({"role": "user", "content": parts}) == (ChatTurn("user", "One 😀"),)


def test_empty_content_is_content() -> None:
    assert turns({"role": "user", "content": ""}) == (ChatTurn("user", ""),)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url"])
def test_a_part_that_is_no_text_is_refused_by_its_place(kind: str) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: {"url": "data:,"}}]
    refused = refusal(messages=[{"role": "user", "content": parts}])
    assert isinstance(refused, UnsupportedParameter)
    assert refused.param == "messages[0].content[1]"
    assert kind in refused.message


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0]"),
    ],
)
def test_a_message_without_text_is_refused_by_its_place(message: dict[str, Any], param: str) -> None:
    refused = refusal(messages=[*HI, message])
    assert isinstance(refused, InvalidRequest)
    assert refused.param == param


def test_tool_calls_in_a_message_are_refused_by_their_place() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    refused = refusal(messages=[{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert refused.param == "messages[0].tool_calls"


def test_an_answer_can_be_sent_back_as_the_sdk_gives_it() -> None:
    answer = ChatCompletionMessage(role="assistant", content="Hello!")
    assert turns(*HI, answer.model_dump())[1] == ChatTurn("assistant", "Hello!")
    assert turns(*HI, answer.model_dump(exclude_unset=True))[1] == ChatTurn("assistant", "Hello!")


def test_every_request_has_an_id_of_its_own_and_the_time_it_came() -> None:
    before = int(time.time())
    one, other = request(), request()
    assert one.id.startswith("chatcmpl-")
    assert one.id != other.id
    assert before <= one.created <= time.time()


# The answer.

REASONS: st.SearchStrategy[FinishReason] = st.sampled_from(["stop", "length"])
ANSWER: list[GenerationEvent] = [
    Started(),
    TextDelta(0, "Hello"),
    TextDelta(0, " 😀"),
    ChoiceFinished(0, "stop", None),
    Completed(Usage(12, 3)),
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
    assert last["usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    assert [chunk["usage"] for chunk in others] == [None] * 4
    assert all(chunk["choices"] for chunk in others)


def test_a_stream_that_was_not_asked_for_usage_does_not_speak_of_it() -> None:
    assert all("usage" not in chunk for chunk in chunks_of(request(stream=True), ANSWER))


def test_the_response_is_one_message_with_its_usage() -> None:
    made = request()
    generation = Generation((Choice(0, "Hello 😀", "length"),), Usage(12, 3))
    assert ChatBuilder(made).response(generation) == {
        "id": made.id,
        "object": "chat.completion",
        "created": made.created,
        "model": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello 😀", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
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
    assert schemas.ChatCompletionResponse.model_validate(body).model_dump() == body
    assert ChatCompletion.model_validate(body).to_dict() == body


@st.composite
def generations(draw: st.DrawFn) -> list[GenerationEvent]:
    """The events of up to three choices, interleaved."""
    left = {index: draw(st.lists(st.text(max_size=4), max_size=4)) for index in range(draw(st.integers(1, 3)))}
    events: list[GenerationEvent] = [Started()]
    while left:
        index = draw(st.sampled_from(sorted(left)))
        if left[index]:
            events.append(TextDelta(index, left[index].pop()))
        else:
            del left[index]
            events.append(ChoiceFinished(index, draw(REASONS), None))
    count = st.integers(0, 10_000)
    return [*events, Completed(Usage(draw(count), draw(count)))]


def fold_chunks(chunks: list[JsonObject]) -> tuple[dict[int, tuple[str, str | None]], JsonObject]:
    """What a client makes of a stream: text and finish reason by choice, and the usage."""
    texts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    usage: JsonObject = {}
    for chunk in map(ChatCompletionChunk.model_validate, chunks):
        for choice in chunk.choices:
            assert reasons.get(choice.index) is None, "a finished choice goes on"
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason
        usage = chunk.usage.to_dict() if chunk.usage is not None else usage
    return {index: (texts[index], reasons[index]) for index in texts}, usage


@pytest.mark.anyio
@given(events=generations())
async def test_folding_the_stream_gives_the_response(events: list[GenerationEvent]) -> None:
    async def generate() -> GenerationEvents:
        for event in events:
            yield event

    made = with_usage()
    response = ChatCompletion.model_validate(ChatBuilder(made).response(await fold(generate())))
    assert response.usage is not None
    assert fold_chunks(chunks_of(made, events)) == (
        {choice.index: (choice.message.content, choice.finish_reason) for choice in response.choices},
        response.usage.to_dict(),
    )


def test_unknown_field_of_a_message_or_of_stream_options_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    body = schemas.ChatCompletionRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi", "mood": "sunny"}],
            "stream_options": {"include_usage": True, "continuous_usage_stats_too": True},
        }
    )
    assert to_request(body, 10).include_usage
    assert "messages[].mood" in caplog.text
    assert "stream_options.continuous_usage_stats_too" in caplog.text
