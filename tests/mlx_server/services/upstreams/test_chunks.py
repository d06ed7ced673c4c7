import json
from typing import Any

import pytest

from mlx_manager.mlx_server.services.upstreams.chunks import ChunkReader
from mlx_manager.mlx_server.services.upstreams.failures import UpstreamFailure, error_message
from mlx_manager.mlx_server.services.upstreams.shapes import BadChunk
from mlx_manager.mlx_server.types import (
    ChoiceFinished,
    Completed,
    GenerationEvent,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    TopLogprob,
    Usage,
)


def chat(*deltas: dict[str, Any], finish_reason: str | None = None, **choice: Any) -> list[dict[str, Any]]:
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}]} for delta in deltas]
    chunks[-1]["choices"][0]["finish_reason"] = finish_reason
    return chunks


def events_of(chunks: list[dict[str, Any]], reader: ChunkReader | None = None) -> list[GenerationEvent]:
    reader = reader if reader is not None else ChunkReader(1)
    return [event for chunk in chunks for event in reader.read(json.dumps(chunk).encode())]


def answer_of(chunks: list[dict[str, Any]], reader: ChunkReader | None = None) -> list[GenerationEvent]:
    """To the end, without the usage."""
    reader = reader if reader is not None else ChunkReader(1)
    *events, completed = [*events_of(chunks, reader), *reader.finish()]
    assert isinstance(completed, Completed)
    return events


def usage_of(reader: ChunkReader) -> Usage:
    *_, completed = reader.finish()
    assert isinstance(completed, Completed)
    return completed.usage


def test_roles_and_empty_pieces_are_no_events() -> None:
    assert events_of(chat({"role": "assistant", "content": ""}, {"content": None}, {})) == []


HM = {"type": "text", "text": "Hm"}


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "Hm"},
        {"reasoning": "Hm"},
        {"thinking": "Hm"},
        {"reasoning_content": "Hm", "reasoning": "Hm"},
        {"reasoning_content": "", "reasoning": "Hm", "content": ""},
        {"reasoning": [HM]},
        {"content": [{"type": "thinking", "thinking": [HM]}]},
        {"content": [{"type": "thinking", "thinking": "H"}, {"type": "reasoning", "text": "m"}]},
    ],
)
def test_thoughts_are_read_under_all_of_their_names_once(delta: dict[str, Any]) -> None:
    assert events_of(chat(delta, {"content": "Yes"})) == [ReasoningDelta(0, "Hm"), TextDelta(0, "Yes")]


@pytest.mark.parametrize(
    "content",
    [[HM], ["H", "m"], HM, [{"type": "output_text", "text": "Hm"}], [{"text": "Hm"}, {"type": "text", "text": None}]],
)
def test_content_in_parts_is_its_text(content: object) -> None:
    assert events_of(chat({"content": content})) == [TextDelta(0, "Hm")]


@pytest.mark.parametrize("delta", [{"refusal": "No."}, {"content": [{"type": "refusal", "refusal": "No."}]}])
def test_refusal_stays_a_refusal(delta: dict[str, Any]) -> None:
    assert events_of(chat(delta)) == [RefusalDelta(0, "No.")]


@pytest.mark.parametrize(
    ("content", "words"),
    [([{"type": "image_url", "image_url": {"url": "x"}}], "image_url"), (7, "7"), ([7], "7"), ({"type": []}, "type")],
)
def test_content_that_is_not_text_is_told(content: object, words: str) -> None:
    with pytest.raises(BadChunk, match=f"not text: .*{words}"):
        events_of(chat({"content": content}))


def test_message_of_an_answer_that_is_not_streamed_is_read_as_a_chunk() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "Yes", "tool_calls": [call], "refusal": None}
    assert answer_of([{"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}]) == [
        TextDelta(0, "Yes"),
        ToolCallStarted(0, 0, "a", "f"),
        ToolCallDelta(0, 0, "{}"),
        ChoiceFinished(0, "tool_calls", None),
    ]


def test_choices_without_an_index_are_told_apart_by_their_place() -> None:
    choices = [{"index": None, "text": text, "finish_reason": "stop"} for text in ("a", "b")]
    assert events_of([{"choices": choices}], ChunkReader(2)) == [TextDelta(0, "a"), TextDelta(1, "b")]


def test_choice_goes_on_behind_a_reason_that_every_chunk_gives() -> None:
    chunks = [*chat({"content": "a"}, finish_reason="stop"), *chat({"content": "b"}, finish_reason="stop")]
    assert answer_of(chunks) == [TextDelta(0, "a"), TextDelta(0, "b"), ChoiceFinished(0, "stop", None)]


@pytest.mark.parametrize(
    ("reasons", "reason"),
    [
        (("stop", "length"), "length"),
        (("tool_calls", "stop"), "tool_calls"),
        (("length", ""), "length"),
        (("length", "stop"), "length"),
    ],
)
def test_stop_says_least_of_several_reasons(reasons: tuple[str, ...], reason: str) -> None:
    chunks = [chunk for each in reasons for chunk in chat({"content": "a"}, finish_reason=each)]
    assert answer_of(chunks)[-1] == ChoiceFinished(0, reason, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("reasons", [("error",), ("stop", "abort"), ("length", "error"), ("error", "stop")])
def test_choice_that_broke_off_is_no_answer(reasons: tuple[str, ...]) -> None:
    reader = ChunkReader(1)
    events_of([chunk for each in reasons for chunk in chat({"content": "a"}, finish_reason=each)], reader)
    with pytest.raises(BadChunk, match=r"finish_reason '(error|abort)', which does not mean a complete answer"):
        list(reader.finish())


def test_stop_string_that_the_upstream_does_not_know_is_found_across_its_pieces() -> None:
    reader = ChunkReader(1, ("lo w",))
    assert events_of(chat({"content": "Hel"}, {"content": "lo"}), reader) == [TextDelta(0, "He"), TextDelta(0, "l")]
    assert not reader.stopped
    assert answer_of(chat({"content": " world"}), reader) == [ChoiceFinished(0, "stop", "lo w")]
    assert reader.stopped


@pytest.mark.parametrize(("stop_reason", "named"), [("END", "END"), (None, None), (151643, None)])
def test_stop_string_that_the_upstream_names_is_told(stop_reason: object, named: str | None) -> None:
    *_, finished = answer_of(chat({"content": "Hi"}, {}, finish_reason="stop", stop_reason=stop_reason))
    assert finished == ChoiceFinished(0, "stop", named)


def test_beginning_of_a_stop_string_is_sent_when_the_upstream_ends_with_it() -> None:
    reader = ChunkReader(1, ("lo w",))
    chunks = chat({"content": "Hello"}, finish_reason="length")
    assert answer_of(chunks, reader) == [TextDelta(0, "Hel"), TextDelta(0, "lo"), ChoiceFinished(0, "length", None)]


def test_logprobs_of_a_chat_have_the_places_of_their_tokens() -> None:
    other = {"token": "b", "logprob": -2.0, "bytes": [98]}
    content = [
        {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [other]},
        {"token": "a", "logprob": -1.0, "bytes": None},
    ]
    top = (TopLogprob("b", -2.0, b"b"),)
    assert events_of(chat({"content": "éa"}, logprobs={"content": content})) == [
        TextDelta(
            *(0, "éa"),
            (TokenLogprob("é", -0.5, "é".encode(), top, 0), TokenLogprob("a", -1.0, b"a", (), 1)),
        )
    ]


def test_logprobs_of_a_completion_are_read_from_their_columns() -> None:
    columns = {
        "tokens": ["a", " b"],
        "token_logprobs": [None, -1.5],
        "top_logprobs": [None, {" c": -0.5}],
        "text_offset": [4, 5],
    }
    chunk = {"choices": [{"index": 0, "text": "a b", "logprobs": columns}]}
    assert events_of([chunk]) == [
        TextDelta(
            *(0, "a b"),
            (
                TokenLogprob("a", 0.0, b"a", (), 4, predicted=False),
                TokenLogprob(" b", -1.5, b" b", (TopLogprob(" c", -0.5, b" c"),), 5),
            ),
        )
    ]


def test_empty_list_of_logprobs_is_none() -> None:
    assert events_of(chat({"content": "a"}, logprobs=[])) == [TextDelta(0, "a")]


def test_columns_of_different_lengths_are_a_bad_chunk() -> None:
    chunk = {"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": []}}]}
    with pytest.raises(BadChunk, match="different lengths"):
        events_of([chunk])


def test_usage_is_the_last_that_was_sent_with_its_details() -> None:
    reader = ChunkReader(1)
    details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
    usages = [{"usage": {"prompt_tokens": 3, "completion_tokens": n, **details}, "choices": []} for n in (1, 4)]
    events_of([usages[0], *chat({"content": "a"}, finish_reason="stop"), usages[1]], reader)
    assert usage_of(reader) == Usage(3, 4, cached_tokens=2, reasoning_tokens=1)


def test_usage_that_is_not_sent_counts_the_pieces() -> None:
    reader = ChunkReader(1)
    events_of(chat({"content": "a"}, {"content": ""}, {"content": "b"}, finish_reason="stop"), reader)
    assert usage_of(reader) == Usage(0, 2)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"{", "invalid chunk"),
        (b"[]", "invalid chunk"),
        (b"\xff", "invalid chunk"),
        (b'{"choices": [{"index": 1}]}', "sent choice index 1 for 1"),
        (b'{"choices": [{"index": -1}]}', "sent choice index -1 for 1"),
    ],
)
def test_what_is_no_chunk_is_told(payload: bytes, words: str) -> None:
    with pytest.raises(BadChunk, match=words.replace("{", r"\{")):
        list(ChunkReader(1).read(payload))


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        ({"error": "went away"}, "went away"),
        ({"error": {"message": "went away"}}, "went away"),
        ({"error": {"code": 5}}, "{'code': 5}"),
        ({"error": {"message": "went away"}, "choices": [{"delta": {}, "finish_reason": "error"}]}, "went away"),
        ({"choices": [{"delta": {}, "error": {"message": "went away"}, "finish_reason": "error"}]}, "went away"),
        ({"object": "error", "message": "went away", "code": 400}, "went away"),
        ({"detail": "went away"}, "went away"),
        ({"error": True, "message": "went away"}, "went away"),
    ],
)
def test_error_of_any_shape_keeps_its_message(chunk: dict[str, Any], words: str) -> None:
    with pytest.raises(UpstreamFailure) as failed:
        events_of([chunk])
    assert error_message(failed.value.error) == words


@pytest.mark.parametrize("error", [None, False, "", {}])
def test_empty_error_is_ignored(error: object) -> None:
    assert events_of([{"error": error, **chat({"content": "a"})[0]}]) == [TextDelta(0, "a")]


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 3.0, "completion_tokens": 4.0, "prompt_tokens_details": 5}, Usage(3, 4)),
        ({"prompt_tokens": None, "completion_tokens": None}, Usage(0, 1)),
        ({"prompt_tokens": -1, "completion_tokens": "4"}, Usage(0, 1)),
        ("a lot", Usage(0, 1)),
        (None, Usage(0, 1)),
    ],
)
def test_usage_that_makes_no_sense_takes_no_answer_away(usage: object, read: Usage) -> None:
    reader = ChunkReader(1)
    events_of([*chat({"content": "a"}, finish_reason="stop"), {"choices": None, "usage": usage}], reader)
    assert usage_of(reader) == read


def test_choice_without_an_end_is_told() -> None:
    reader = ChunkReader(2)
    events_of(chat({"content": "a"}, finish_reason="stop"), reader)
    with pytest.raises(BadChunk, match="choice 1"):
        list(reader.finish())
