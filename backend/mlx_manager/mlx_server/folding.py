"""Collects events into a whole generation, for answers without streaming and for traces. Knows no protocol."""

from collections import defaultdict
from contextlib import aclosing
from typing import assert_never

from mlx_manager.mlx_server.types import (
    Choice,
    ChoiceFinished,
    Completed,
    Delta,
    FinishReason,
    Generation,
    GenerationEvents,
    Passage,
    Prefilled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)


async def fold(events: GenerationEvents) -> Generation:
    """Consumes and closes `events`, and returns the whole generation."""
    parts: defaultdict[int, ChoiceParts] = defaultdict(ChoiceParts)
    choices: list[Choice] = []
    usage = Usage(0, 0)
    async with aclosing(events):
        async for event in events:
            match event:
                case Started() | Prefilled():
                    pass
                case TextDelta() | ReasoningDelta() | RefusalDelta() | ToolCallStarted() | ToolCallDelta():
                    parts[event.index].add(event)
                case ChoiceFinished(index, reason, stop):
                    choices.append(parts[index].choice(index, reason, stop))
                case Completed(usage):
                    pass
                case _:
                    assert_never(event)
    return Generation(tuple(sorted(choices, key=lambda choice: choice.index)), usage)


class ChoiceParts:
    """The deltas of one choice."""

    def __init__(self) -> None:
        self._parts: list[tuple[type[TextDelta | ReasoningDelta | RefusalDelta], list[str]] | int] = []
        """Passages and call numbers in order."""
        self._kind: type | None = None
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._calls: dict[int, tuple[ToolCallStarted, list[str]]] = {}

    def add(self, event: Delta) -> None:
        match event:
            case TextDelta() | ReasoningDelta() | RefusalDelta():
                if not isinstance(event, RefusalDelta):
                    self._logprobs += event.logprobs
                if self._kind is not type(event):
                    self._kind, self._texts = type(event), []
                    self._parts.append((type(event), self._texts))
                self._texts.append(event.text)
            case ToolCallStarted():
                self._kind = ToolCallStarted
                self._parts.append(event.call)
                self._calls[event.call] = (event, [])
            case ToolCallDelta():
                self._calls[event.call][1].append(event.arguments)
            case _:
                assert_never(event)

    def choice(self, index: int, reason: FinishReason, stop: str | None = None) -> Choice:
        calls = {n: ToolCall(call.id, call.name, "".join(texts)) for n, (call, texts) in self._calls.items()}
        parts = tuple(
            calls[part] if isinstance(part, int) else Passage(part[0], "".join(part[1])) for part in self._parts
        )
        return Choice(
            index,
            _joined(parts, TextDelta),
            reason,
            tuple(self._logprobs),
            _joined(parts, ReasoningDelta),
            tuple(calls.values()),
            _joined(parts, RefusalDelta),
            stop,
            parts,
        )


def _joined(parts: tuple[Passage | ToolCall, ...], kind: type[TextDelta | ReasoningDelta | RefusalDelta]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Passage) and part.kind is kind)
