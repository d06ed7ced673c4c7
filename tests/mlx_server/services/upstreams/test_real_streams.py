"""Streams as real servers write them: each file of `streams/` says where its shape is from."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.services.upstreams.chunks import ChunkReader
from mlx_manager.mlx_server.services.upstreams.event_stream import EventStreamDecoder, ServerSentEvent
from mlx_manager.mlx_server.services.upstreams.failures import UpstreamFailure, error_message, error_object
from mlx_manager.mlx_server.types import Choice, Generation, GenerationEvent, ToolCall, Usage

STREAMS = Path(__file__).parent / "streams"


def weather(call_id: str, city: str, space: str = "") -> ToolCall:
    return ToolCall(call_id, "get_weather", f'{{"city":{space}"{city}"}}')


def called(*calls: ToolCall, reasoning: str = "") -> Choice:
    return Choice(0, "", "tool_calls", reasoning=reasoning, tool_calls=calls)


ANSWERS = {
    "openai": (called(weather("call_F9Za", "Oslo")), Usage(61, 16, cached_tokens=4)),
    "openai-refusal": (Choice(0, "", "stop", refusal="I'm sorry, I can't."), Usage(0, 2)),
    "llama-server": (called(weather("v2dhK1", "Oslo"), reasoning="They ask for it."), Usage(463, 20)),
    "ollama": (
        called(weather("call_wteop8bt", "Oslo"), weather("call_rk2xye1l", "Rome"), reasoning="Two cities."),
        Usage(170, 41),
    ),
    "ollama-before-0.1.38": (Choice(0, " It is 7 degrees.", "stop"), Usage(0, 2)),
    "ollama-before-0.4.7": (
        Choice(0, "", "stop", tool_calls=(weather("call_1", "Oslo"), weather("call_2", "Rome"))),
        Usage(0, 2),
    ),
    "lm-studio": (Choice(0, "It is 7.", "stop", reasoning="Easy."), Usage(0, 4)),
    "lm-studio-calls": (
        Choice(0, "<think>", "tool_calls", tool_calls=(weather("365174485", "Oslo"),)),
        Usage(0, 5),
    ),
    "vllm": (called(weather("chatcmpl-tool-ca99", "Oslo", " "), reasoning="Okay."), Usage(170, 20)),
    "vllm-all-calls-0": (
        called(weather("chatcmpl-tool-c9ZC", "Oslo"), weather("chatcmpl-tool-HfzZ", "Rome"), reasoning="Both."),
        Usage(0, 5),
    ),
    "mlx-lm": (Choice(0, "It is 7.", "stop"), Usage(14, 8, cached_tokens=3)),
    "mlx-lm-calls": (called(weather("294effb2-fe93", "Oslo", " ")), Usage(6, 4)),
}
FAILURES = {
    "llama-server-error": "context shift is disabled",
    "lm-studio-error": "Compute error.",
    "vllm-error": "EngineCore encountered an issue.",
}


def sent(name: str) -> list[ServerSentEvent]:
    decoder = EventStreamDecoder()
    return [*decoder.feed((STREAMS / f"{name}.sse").read_bytes()), *decoder.flush()]


def events_of(name: str) -> Iterator[GenerationEvent]:
    reader = ChunkReader(1)
    for event in sent(name):
        if event.is_error:
            raise UpstreamFailure(error_object(event.payload))
        if not event.is_done:
            yield from reader.read(event.payload)
    yield from reader.finish()


def answer_of(name: str) -> Generation:
    async def events() -> AsyncGenerator[GenerationEvent, None]:
        for event in events_of(name):
            yield event

    return asyncio.run(fold(events()))


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_of_a_real_server_is_understood(name: str) -> None:
    choice, usage = ANSWERS[name]
    assert answer_of(name) == Generation((choice,), usage)


@pytest.mark.parametrize("name", FAILURES)
def test_failure_of_a_real_server_keeps_its_message(name: str) -> None:
    with pytest.raises(UpstreamFailure) as failed:
        list(events_of(name))
    assert error_message(failed.value.error) == FAILURES[name]


def test_all_streams_are_tried() -> None:
    assert {path.stem for path in STREAMS.glob("*.sse")} == ANSWERS.keys() | FAILURES.keys()
