import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from pydantic import ValidationError

from mlx_manager.mlx_server.errors import UnsupportedParameter
from mlx_manager.mlx_server.protocols.completions import CompletionBuilder, to_request
from mlx_manager.mlx_server.protocols.wire import JsonObject
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
    SamplingOverrides,
    Started,
    TextDelta,
    Usage,
    fold,
)


def request(**fields: Any) -> CompletionRequest:
    return to_request(schemas.CompletionRequest.model_validate({"model": "demo", "prompt": "Once", **fields}))


def test_what_is_not_given_is_left_to_the_model_and_then_to_openais_defaults() -> None:
    made = request()
    assert (made.sampling, made.max_tokens) == (SamplingOverrides(), None)
    assert (made.stop, made.include_usage, made.echo, made.default_max_tokens) == ((), False, False, 16)


def test_every_field_is_used() -> None:
    made = request(prompt=" upon", max_tokens=9, stop="\n", echo=True, stream_options={"include_usage": True})
    assert (made.model, made.prompt, made.echo, made.include_usage) == ("demo", " upon", True, True)
    assert (made.max_tokens, made.stop) == (9, ("\n",))


def test_sampling_parameters_reach_the_engine_as_those_of_a_chat_do() -> None:
    sampling: dict[str, Any] = {
        "temperature": 0,
        "top_p": 1,
        "top_k": 5,
        "seed": 3,
        "min_p": 0.1,
        "presence_penalty": 1,
    }
    assert request(**sampling).sampling == replace(SamplingOverrides(), **sampling)


@pytest.mark.parametrize(
    "name",
    [
        "temperature",
        "top_p",
        "seed",
        "logit_bias",
        "max_tokens",
        "stop",
        "stream",
        "stream_options",
        "echo",
        "n",
        "best_of",
        "logprobs",
        "suffix",
        "user",
    ],
)
def test_null_means_that_a_field_is_absent(name: str) -> None:
    made, bare = request(**{name: None}), request()
    assert replace(made, id=bare.id, created=bare.created) == bare


@pytest.mark.parametrize("prompt", [["one", "two"], ["one"], [1, 2, 3], [[1, 2], [3]]])
def test_a_prompt_other_than_one_string_is_refused_by_name(prompt: object) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        request(prompt=prompt)
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("fields", [{"n": 2}, {"best_of": 3}, {"logprobs": 0}, {"logprobs": 5}, {"suffix": "end"}])
def test_a_parameter_that_is_not_built_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        request(**fields)
    assert refused.value.param == next(iter(fields))


@pytest.mark.parametrize(
    "fields", [{"temperature": 2.1}, {"max_tokens": -1}, {"prompt": {"text": "Once"}}, {"prompt": None}, {"stop": [""]}]
)
def test_a_body_that_breaks_the_schema_is_no_body(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(**fields)


def test_every_request_has_an_id_of_its_own_and_the_time_it_came() -> None:
    before = int(time.time())
    one, other = request(), request()
    assert one.id.startswith("cmpl-")
    assert one.id != other.id
    assert before <= one.created <= time.time()


# The answer.

REASONS: st.SearchStrategy[FinishReason] = st.sampled_from(["stop", "length"])
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
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 16, "total_tokens": 18}
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
        "choices": [{"index": 0, "text": " upon", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6},
    }
    assert schemas.CompletionResponse.model_validate(body).model_dump() == body
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


def fold_chunks(chunks: list[JsonObject]) -> tuple[dict[int, tuple[str, str | None]], schemas.Usage | None]:
    """What a client makes of a stream: text and finish reason by choice, and the usage."""
    texts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    usage = None
    for chunk in map(schemas.CompletionResponse.model_validate, chunks):
        for choice in chunk.choices:
            assert reasons.get(choice.index) is None, "a finished choice goes on"
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason
        usage = chunk.usage or usage
    return {index: (texts[index], reasons[index]) for index in texts}, usage


@pytest.mark.anyio
@given(events=generations())
async def test_folding_the_stream_gives_the_response(events: list[GenerationEvent]) -> None:
    async def generate() -> GenerationEvents:
        for event in events:
            yield event

    made = with_usage()
    body = CompletionBuilder(made).response(await fold(generate()))
    response = schemas.CompletionResponse.model_validate(body)
    assert fold_chunks(chunks_of(made, events)) == (
        {choice.index: (choice.text, choice.finish_reason) for choice in response.choices},
        response.usage,
    )
