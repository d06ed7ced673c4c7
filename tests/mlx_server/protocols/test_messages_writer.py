"""Events to Anthropic's: blocks in order, one open at a time, and the same content as the whole response has."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_manager.mlx_server import errors
from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.protocols.base import ParseOptions
from mlx_manager.mlx_server.protocols.messages import Messages
from mlx_manager.mlx_server.protocols.messages_writer import MessagesWriter
from mlx_manager.mlx_server.schemas.anthropic import MessagesRequest
from mlx_manager.mlx_server.types import (
    ChoiceFinished,
    Completed,
    GenerationEvent,
    GenerationEvents,
    Prefilled,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from tests import folding

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
USAGE = Usage(10, 5, cached_tokens=4, reasoning_tokens=2, stored_tokens=6)
END = (ChoiceFinished(0, "stop", None), Completed(USAGE))
CALL = (ToolCallStarted(0, 0, "call_1", "look"), ToolCallDelta(0, 0, '{"at":'), ToolCallDelta(0, 0, ' "it"}'))


def writer(**fields: Any) -> MessagesWriter:
    protocol = Messages()
    return protocol.writer(protocol.parse(MessagesRequest.model_validate(BODY | fields), ParseOptions()))


def stream(*events: GenerationEvent, **fields: Any) -> str:
    made = writer(**fields)
    return b"".join([*(frame for event in events for frame in made.frames(event)), made.end()]).decode()


def names(text: str) -> list[str]:
    return [name for name, _ in folding.message_events(text)]


async def whole(*events: GenerationEvent, **fields: Any) -> dict[str, Any]:
    async def generate() -> GenerationEvents:
        for event in events:
            yield event

    return writer(**fields).response(await fold(generate()))


def test_the_order_of_events() -> None:
    text = stream(Started(), Prefilled(10, 4, 6), TextDelta(0, "Hi"), TextDelta(0, "!"), *END)
    assert names(text) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_an_answer_without_anything_has_an_empty_text_block() -> None:
    text = stream(Started(), Prefilled(10, 4), TextDelta(0, " \n"), *END)
    assert folding.of_message_events(text)["content"] == [{"type": "text", "text": "", "citations": None}]


def test_without_a_count_of_the_prompt_the_message_starts_with_its_first_delta() -> None:
    (_, start), *_ = folding.message_events(stream(Started(), TextDelta(0, "Hi"), *END))
    assert start["message"]["usage"]["input_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "counts"),
    [({}, (6, 0, 4)), ({"cache_control": {"type": "ephemeral"}}, (0, 6, 4))],
)
def test_the_three_counts_of_input_tokens_add_up_to_the_prompt(
    fields: dict[str, Any], counts: tuple[int, int, int]
) -> None:
    events = list(folding.message_events(stream(Prefilled(10, 4, 6), TextDelta(0, "Hi"), *END, **fields)))
    for usage in (events[0][1]["message"]["usage"], events[-2][1]["usage"]):
        assert (
            usage["input_tokens"],
            usage["cache_creation_input_tokens"],
            usage["cache_read_input_tokens"],
        ) == counts
    assert usage["output_tokens_details"] == {"thinking_tokens": 2}


@pytest.mark.parametrize(
    ("finished", "usage", "ending"),
    [
        (ChoiceFinished(0, "stop", None), USAGE, ("end_turn", None)),
        (ChoiceFinished(0, "stop", "END"), USAGE, ("stop_sequence", "END")),
        (ChoiceFinished(0, "tool_calls", None), USAGE, ("tool_use", None)),
        (ChoiceFinished(0, "length", None), Usage(10, 9), ("max_tokens", None)),
        (ChoiceFinished(0, "length", None), Usage(10, 8), ("model_context_window_exceeded", None)),
        (ChoiceFinished(0, "length", None), Usage(0, 8), ("max_tokens", None)),
    ],
)
async def test_why_an_answer_ended(finished: ChoiceFinished, usage: Usage, ending: tuple[str, str | None]) -> None:
    events = (TextDelta(0, "x"), finished, Completed(usage))
    for message in (await whole(*events), folding.of_message_events(stream(*events))):
        assert (message["stop_reason"], message["stop_sequence"]) == ending


async def test_arguments_that_were_cut_off_are_an_object_as_far_as_they_go() -> None:
    message = await whole(*CALL[:2], ToolCallDelta(0, 0, ' "i'), ChoiceFinished(0, "length", None), Completed(USAGE))
    assert message["content"][0]["input"] == {}
    assert (await whole(CALL[0], *END))["content"][0]["input"] == {}
    assert (await whole(CALL[0], ToolCallDelta(0, 0, "[1]"), *END))["content"][0]["input"] == {}


async def test_omitted_thoughts_are_in_the_signature_alone() -> None:
    omitted = {"thinking": {"type": "adaptive", "display": "omitted"}}
    text = stream(ReasoningDelta(0, "Hm"), ReasoningDelta(0, "."), TextDelta(0, "Yes"), *END, **omitted)
    assert "thinking_delta" not in text
    message = await whole(ReasoningDelta(0, "Hm."), TextDelta(0, "Yes"), *END, **omitted)
    assert folding.of_message_events(text)["content"] == message["content"]
    assert message["content"][0]["thinking"] == ""


def test_nothing_follows_the_end() -> None:
    made = writer()
    assert b"event: ping" in made.keep_alive()
    for event in (TextDelta(0, "Hi"), *END):
        made.frames(event)
    assert (made.end(), made.keep_alive()) == (b"", b"")
    broken = writer()
    assert broken.error_frame(errors.EngineFailed("It died."), "id").startswith(b"event: error\n")
    assert broken.keep_alive() == b""


DELTAS = st.lists(
    st.one_of(
        st.builds(TextDelta, st.just(0), st.sampled_from([" ", "\n", "a", " b "])),
        st.builds(ReasoningDelta, st.just(0), st.sampled_from([" ", "\n", "c", " d "])),
        st.just(CALL),
    ),
    max_size=12,
)


def numbered(deltas: Sequence[TextDelta | ReasoningDelta | tuple[Any, ...]]) -> list[GenerationEvent]:
    events: list[GenerationEvent] = []
    calls = 0
    for delta in deltas:
        if isinstance(delta, tuple):
            events += [ToolCallStarted(0, calls, f"call_{calls}", "look"), ToolCallDelta(0, calls, '{"at": "it"}')]
            calls += 1
        else:
            events.append(delta)
    return events


@settings(max_examples=500)
@example([TextDelta(0, "a"), ReasoningDelta(0, " "), TextDelta(0, " "), ReasoningDelta(0, "c")])
@given(DELTAS)
async def test_any_stream_folds_to_the_response(deltas: list[Any]) -> None:
    events = [Started(), Prefilled(10, 4, 6), *numbered(deltas), *END]
    message = await whole(*events)
    streamed = folding.of_message_events(stream(*events))
    assert {**streamed, "id": None} == {**message, "id": None}
    assert all(block["text"].strip() for block in message["content"][1:] if block["type"] == "text")
