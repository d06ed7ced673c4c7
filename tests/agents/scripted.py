"""An upstream that says what a test has written for it, turn by turn."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.faulty_upstream import DONE, Answer, FaultyUpstream, sse


def chunk(finish_reason: str | None = None, **delta: Any) -> bytes:
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


USAGE = sse({"choices": [], "usage": {"prompt_tokens": 900, "completion_tokens": 7}})


def says(*texts: str) -> Answer:
    return Answer((*(chunk(content=text) for text in texts), chunk("stop"), USAGE, DONE))


def calls(name: str, arguments: str, thought: str) -> Answer:
    begin = {"id": f"call_{name}", "function": {"name": name, "arguments": ""}}
    return Answer(
        (
            chunk(reasoning_content=thought),
            chunk(tool_calls=[{"index": 0, **begin}]),
            chunk(tool_calls=[{"index": 0, "function": {"arguments": arguments}}]),
            chunk("tool_calls"),
            USAGE,
            DONE,
        )
    )


class Scripted(dict[str, Answer]):
    """Gives a model's n-th answer once the conversation holds n results of tools."""

    def __init__(self, upstream: FaultyUpstream, scripts: Mapping[str, Sequence[Answer]]) -> None:
        super().__init__({model: script[0] for model, script in scripts.items()})
        self._upstream = upstream
        self._scripts: Mapping[str, Sequence[Answer]] = scripts

    def __getitem__(self, model: str) -> Answer:
        messages = self._upstream.bodies[-1]["messages"]
        results = [message for message in messages if message["role"] == "tool"]
        return self._scripts[model][len(results)]
