"""Streams an answer as a sequence of blocks, one open at a time. Knows no protocol's block format. Pure."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.types import (
    Passage,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
)

PassageKind = type[TextDelta | ReasoningDelta | RefusalDelta]


class Blocks(ABC):
    """Emits the blocks of a stream as events.

    Text and reasoning open a block at the first non-space character: clients show empty blocks, and some servers
    refuse them in the next turn. An answer without any block gets one empty text block.
    """

    def __init__(self) -> None:
        self.index = -1
        self.open: PassageKind | type[ToolCallStarted] | None = None
        self._held: dict[PassageKind, str] = {}
        self._call = -1

    def write(self, kind: PassageKind, text: str) -> Iterator[JsonObject]:
        if self.open is not kind:
            text = self._held.get(kind, "") + text
            if not text.strip():
                self._held = {kind: text}
                return
            yield from self._begin(kind)
        self._held = {}
        yield from self._add_text(kind, text)

    def call(self, call: ToolCallStarted) -> Iterator[JsonObject]:
        self._call, self._held = call.call, {}
        yield from self._begin(call)

    def arguments(self, delta: ToolCallDelta) -> Iterator[JsonObject]:
        """Drops arguments of a closed block: calls are written one after the other."""
        if self.open is ToolCallStarted and delta.call == self._call:
            yield from self._add_arguments(delta.arguments)

    def finish(self) -> Iterator[JsonObject]:
        if self.index < 0:
            yield from self._begin(TextDelta)
        yield from self._close()

    def _begin(self, block: PassageKind | ToolCallStarted) -> Iterator[JsonObject]:
        yield from self._close()
        self.open = ToolCallStarted if isinstance(block, ToolCallStarted) else block
        self.index += 1
        yield from self._open(block)

    def _close(self) -> Iterator[JsonObject]:
        if self.open is not None:
            yield from self._end()
            self.open = None

    @abstractmethod
    def _open(self, block: PassageKind | ToolCallStarted) -> Iterator[JsonObject]: ...

    @abstractmethod
    def _add_text(self, kind: PassageKind, text: str) -> Iterator[JsonObject]: ...

    @abstractmethod
    def _add_arguments(self, arguments: str) -> Iterator[JsonObject]: ...

    @abstractmethod
    def _end(self) -> Iterator[JsonObject]:
        """The events that end the open block."""


def joined_parts(parts: tuple[Passage | ToolCall, ...]) -> list[Passage | ToolCall]:
    """The blocks of a whole answer, equal to the blocks of its stream."""
    joined: list[Passage | ToolCall] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Passage) and isinstance(last, Passage) and last.kind is part.kind:
            joined[-1] = Passage(last.kind, last.text + part.text)
        elif isinstance(part, ToolCall) or part.text.strip():
            joined.append(part)
    return joined
