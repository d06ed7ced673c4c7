"""Events to those of the Responses API: numbered, in their order, and with the same items as the whole response."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from mlx_manager.mlx_server import errors
from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.protocols.base import ParseOptions
from mlx_manager.mlx_server.protocols.responses import Responses
from mlx_manager.mlx_server.protocols.responses_writer import ResponsesWriter
from mlx_manager.mlx_server.schemas.responses import ResponsesRequest
from mlx_manager.mlx_server.types import (
    ChoiceFinished,
    Completed,
    GenerationEvent,
    GenerationEvents,
    Prefilled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from tests import folding

pytestmark = pytest.mark.anyio

TOOLS = [
    {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}},
    {"type": "custom", "name": "patch"},
    {"type": "namespace", "name": "crew", "description": "", "tools": [{"type": "function", "name": "spawn"}]},
]
BODY: dict[str, Any] = {"model": "demo", "input": "Hi", "tools": TOOLS}
USAGE = Usage(10, 5, cached_tokens=4, reasoning_tokens=2, stored_tokens=6)
END = (ChoiceFinished(0, "stop", None), Completed(USAGE))
CUT = (ChoiceFinished(0, "length", None), Completed(USAGE))


def call(name: str, *pieces: str, number: int = 0) -> tuple[GenerationEvent, ...]:
    deltas = (ToolCallDelta(0, number, piece) for piece in pieces)
    return (ToolCallStarted(0, number, f"call_{number}", name), *deltas)


def writer(**fields: Any) -> ResponsesWriter:
    protocol = Responses()
    return protocol.writer(protocol.parse(ResponsesRequest.model_validate(BODY | fields), ParseOptions()))


def stream(*events: GenerationEvent, **fields: Any) -> str:
    made = writer(**fields)
    frames = (frame for event in (Started(), Prefilled(10, 4, 6), *events) for frame in made.frames(event))
    return b"".join([*frames, made.end()]).decode()


async def whole(*events: GenerationEvent, **fields: Any) -> dict[str, Any]:
    async def generate() -> GenerationEvents:
        for event in events:
            yield event

    return writer(**fields).response(await fold(generate()))


def names(text: str) -> list[str]:
    return [name.removeprefix("response.") for name, _ in folding.named_events(text)]


def test_the_order_of_events() -> None:
    text = stream(ReasoningDelta(0, "Hm"), TextDelta(0, "Hi"), TextDelta(0, "!"), *call("look", "{", "}"), *END)
    assert names(text) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]


def test_thoughts_are_their_own_summary_where_one_is_asked_for() -> None:
    text = stream(ReasoningDelta(0, "Hm"), TextDelta(0, "Hi"), *END, reasoning={"summary": "auto"})
    (item, _) = folding.of_response_events(text)["output"]
    assert [part["text"] for part in (*item["content"], *item["summary"])] == ["Hm", "Hm"]
    assert "encrypted_content" not in item


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("look", {"type": "function_call", "name": "look", "arguments": '{"input": "a\\nb"}'}),
        ("patch", {"type": "custom_tool_call", "name": "patch", "input": "a\nb"}),
        ("spawn", {"type": "function_call", "name": "spawn", "namespace": "crew", "arguments": '{"input": "a\\nb"}'}),
    ],
)
async def test_a_call_is_an_item_of_its_tools_type(name: str, expected: dict[str, str]) -> None:
    events = (*call(name, '{"input"', ': "a\\', 'nb"}'), *END)
    for response in (await whole(*events), folding.of_response_events(stream(*events))):
        (item,) = response["output"]
        assert {**item, **expected, "call_id": "call_0", "status": "completed"} == item


@pytest.mark.parametrize(
    ("finished", "status", "details"),
    [
        (ChoiceFinished(0, "stop", None), "completed", None),
        (ChoiceFinished(0, "tool_calls", None), "completed", None),
        (ChoiceFinished(0, "length", None), "incomplete", {"reason": "max_output_tokens"}),
        (ChoiceFinished(0, "content_filter", None), "incomplete", {"reason": "content_filter"}),
    ],
)
async def test_why_an_answer_ended(finished: ChoiceFinished, status: str, details: dict[str, str] | None) -> None:
    events = (TextDelta(0, "x"), finished, Completed(USAGE))
    for response in (await whole(*events), folding.of_response_events(stream(*events))):
        assert (response["status"], response["incomplete_details"]) == (status, details)
        assert response["output"][-1]["status"] == status
        assert (response["completed_at"] is None) == (status != "completed")


@pytest.mark.parametrize("name", ["look", "patch"])
async def test_a_call_that_was_cut_off_says_so(name: str) -> None:
    events = (*call(name, '{"input": "a'), *CUT)
    for response in (await whole(*events), folding.of_response_events(stream(*events))):
        assert response["output"][0]["status"] == "incomplete"


def test_usage_has_its_details() -> None:
    assert folding.of_response_events(stream(TextDelta(0, "x"), *END))["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 6},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 15,
    }


async def test_a_response_is_openais() -> None:
    response = await whole(ReasoningDelta(0, "Hm"), TextDelta(0, "x"), *call("patch", '{"input": "a"}'), *END)
    Response.model_validate(response)


def test_a_failure_in_mid_stream_is_a_failed_response() -> None:
    made = writer()
    sent = [*made.frames(Started()), *made.frames(TextDelta(0, "Hi"))]
    sent.append(made.error_frame(errors.ContextLengthExceeded("Too long."), "id"))
    events = list(folding.named_events(b"".join(sent).decode()))
    kind, last = events[-1]
    assert (kind, last["sequence_number"]) == ("response.failed", len(events) - 1)
    assert last["response"]["error"] == {"code": "context_length_exceeded", "message": "Too long."}
    assert made.keep_alive() == b""


def test_a_keep_alive_is_an_event_with_the_next_number() -> None:
    made = writer()
    assert made.keep_alive() == b""
    sent = [*made.frames(Started()), made.keep_alive(), *made.frames(TextDelta(0, "Hi"))]
    for event in END:
        sent += made.frames(event)
    assert made.keep_alive() == b""
    text = b"".join(sent).decode()
    assert names(text)[:3] == ["created", "in_progress", "in_progress"]
    assert folding.of_response_events(text)["status"] == "completed"


def scored(text: str, offset: int) -> TextDelta:
    return TextDelta(0, text, (TokenLogprob(text, -0.5, text.encode(), (), offset),))


async def test_logprobs_are_with_the_text_that_they_are_of() -> None:
    events = (scored("a", 0), scored("b", 1), *call("look", "{}"), scored("c", 2), *END)
    first, _, second = (await whole(*events, top_logprobs=0))["output"]
    assert [entry["token"] for entry in first["content"][0]["logprobs"]] == ["a", "b"]
    assert [entry["token"] for entry in second["content"][0]["logprobs"]] == ["c"]
    assert folding.of_response_events(stream(*events))["output"][2]["content"] == second["content"]


DELTAS = st.lists(
    st.one_of(
        st.builds(TextDelta, st.just(0), st.sampled_from([" ", "\n", "a", " b "])),
        st.builds(ReasoningDelta, st.just(0), st.sampled_from([" ", "\n", "c", " d "])),
        st.builds(RefusalDelta, st.just(0), st.sampled_from([" ", "no"])),
        st.sampled_from(["look", "patch", "spawn", "unknown"]),
    ),
    max_size=12,
)


def numbered(deltas: Sequence[GenerationEvent | str]) -> list[GenerationEvent]:
    events: list[GenerationEvent] = []
    calls = 0
    for delta in deltas:
        if isinstance(delta, str):
            events += call(delta, '{"input": ', '"it\\', 'u00e9"}', number=calls)
            calls += 1
        else:
            events.append(delta)
    return events


@settings(max_examples=500)
@example([TextDelta(0, "a"), ReasoningDelta(0, " "), TextDelta(0, " "), ReasoningDelta(0, "c")])
@given(DELTAS)
async def test_any_stream_folds_to_the_response(deltas: list[Any]) -> None:
    events = [*numbered(deltas), *END]
    options = {"reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]}
    response = await whole(*events, **options)
    streamed = folding.of_response_events(stream(*events, **options))
    assert without_identity(streamed) == without_identity(response)


def without_identity(response: dict[str, Any]) -> dict[str, Any]:
    """Ids of items go with the response's own."""
    serial = response["id"].removeprefix("resp_")
    output = [{**item, "id": item["id"].replace(serial, "")} for item in response["output"]]
    return {**response, "id": None, "created_at": None, "completed_at": None, "output": output}
