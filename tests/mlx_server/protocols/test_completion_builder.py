"""Events to what goes over the wire."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion

from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.protocols.completions import CompletionBuilder, to_request
from mlx_manager.mlx_server.protocols.wire import JsonObject, system_fingerprint
from mlx_manager.mlx_server.schemas import openai as schemas
from mlx_manager.mlx_server.types import (
    Choice,
    ChoiceFinished,
    Completed,
    CompletionRequest,
    FinishReason,
    Generation,
    GenerationEvent,
    GenerationEvents,
    Started,
    TextDelta,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from tests import folding


def request(**fields: Any) -> CompletionRequest:
    return to_request(schemas.CompletionRequest.model_validate({"model": "demo", "prompt": "Once", **fields}))


REASONS: st.SearchStrategy[FinishReason] = st.sampled_from(["stop", "length"])


def usage(prompt_tokens: int, completion_tokens: int) -> JsonObject:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


ANSWER: list[GenerationEvent] = [
    Started(),
    TextDelta(0, " upon"),
    TextDelta(0, " a 時"),
    ChoiceFinished(0, "length", None),
    Completed(Usage(2, 16)),
]


def chunks_of(made: CompletionRequest, events: list[GenerationEvent]) -> list[JsonObject]:
    builder = CompletionBuilder(made)
    return [chunk for event in events for chunk in builder.event(event)]


def with_usage() -> CompletionRequest:
    return request(stream=True, stream_options={"include_usage": True})


def test_a_stream_is_the_text_and_then_one_finish_reason() -> None:
    choices = [chunk["choices"] for chunk in chunks_of(request(stream=True), ANSWER)]
    assert choices == [
        [{"index": 0, "text": " upon", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": " a 時", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}],
    ]


def test_the_usage_comes_last_with_no_choices_when_it_was_asked_for() -> None:
    *others, last = chunks_of(with_usage(), ANSWER)
    assert last["choices"] == []
    assert last["usage"] == usage(2, 16)
    assert [chunk["usage"] for chunk in others] == [None] * 3
    assert all("usage" not in chunk for chunk in chunks_of(request(stream=True), ANSWER))


def test_the_response_is_one_text_with_its_usage() -> None:
    made = request()
    body = CompletionBuilder(made).response(Generation((Choice(0, " upon", "stop"),), Usage(2, 4)))
    assert body == {
        "id": made.id,
        "object": "text_completion",
        "created": made.created,
        "model": "demo",
        "system_fingerprint": system_fingerprint("demo"),
        "choices": [{"index": 0, "text": " upon", "logprobs": None, "finish_reason": "stop"}],
        "usage": usage(2, 4),
    }
    assert schemas.CompletionResponse.model_validate(body).model_dump(exclude_unset=True) == body
    assert Completion.model_validate(body).to_dict() == body


def test_identity_is_the_same_in_every_chunk_and_in_the_response() -> None:
    made = with_usage()
    bodies = [*chunks_of(made, ANSWER), CompletionBuilder(made).response(Generation((), Usage(0, 0)))]
    assert {(body["id"], body["created"], body["model"]) for body in bodies} == {(made.id, made.created, "demo")}


@pytest.mark.parametrize("made", [request(stream=True), with_usage()])
def test_every_chunk_is_a_chunk_to_our_schema_and_at_its_end_to_openais(made: CompletionRequest) -> None:
    for chunk in chunks_of(made, ANSWER):
        parsed = schemas.CompletionResponse.model_validate(chunk)
        if all(choice.finish_reason for choice in parsed.choices):  # openai's type has no null, though its wire has
            assert Completion.model_validate(chunk).to_dict() == chunk


TEXT = st.text(max_size=4)
LOGPROBS = st.builds(
    TokenLogprob,
    TEXT,
    st.floats(-20, 0),
    st.binary(max_size=3),
    st.lists(st.builds(TopLogprob, TEXT, st.floats(-20, 0), st.binary(max_size=3)), max_size=2).map(tuple),
    st.integers(0, 9),
    st.booleans(),
)


@st.composite
def generations(draw: st.DrawFn) -> list[GenerationEvent]:
    """The events of three choices, interleaved."""
    deltas = st.lists(st.tuples(TEXT, st.lists(LOGPROBS, max_size=2).map(tuple)), max_size=4)
    left = {index: draw(deltas) for index in range(3)}
    events: list[GenerationEvent] = [Started()]
    while left:
        index = draw(st.sampled_from(sorted(left)))
        if left[index]:
            events.append(TextDelta(index, *left[index].pop()))
        else:
            del left[index]
            events.append(ChoiceFinished(index, draw(REASONS), None))
    count = st.integers(0, 10_000)
    return [*events, Completed(Usage(draw(count), draw(count), draw(count), draw(count)))]


@pytest.mark.anyio
@pytest.mark.parametrize("logprobs", [None, 2])
@given(events=generations())
async def test_folding_the_stream_gives_the_response(logprobs: int | None, events: list[GenerationEvent]) -> None:
    async def generate() -> GenerationEvents:
        for event in events:
            yield event

    made = request(stream=True, stream_options={"include_usage": True}, n=3, logprobs=logprobs)
    response = CompletionBuilder(made).response(await fold(generate()))
    assert folding.of_completion_chunks(chunks_of(made, events)) == folding.of_completion_response(response)
    schemas.CompletionResponse.model_validate(response)


def test_logprobs_are_columns_and_name_the_chosen_token_among_the_likeliest() -> None:
    first = TokenLogprob("<s>", 0.0, b"<s>", (), 0, predicted=False)
    second = TokenLogprob("b", -2.5, b"b", (TopLogprob("a", -0.5, b"a"),), 3)
    generation = Generation((Choice(0, "<s>b", "length", (first, second)),), Usage(1, 1))
    body = CompletionBuilder(request(logprobs=1)).response(generation)
    (choice,) = schemas.CompletionResponse.model_validate(body).choices
    assert choice.logprobs is not None
    assert choice.logprobs.model_dump() == {
        "tokens": ["<s>", "b"],
        "token_logprobs": [None, -2.5],
        "top_logprobs": [None, {"a": -0.5, "b": -2.5}],
        "text_offset": [0, 3],
    }
