"""Turns the parsed output of one choice into events. Numbers its tool calls and gives them ids."""

import uuid
from collections.abc import Iterator
from typing import assert_never

from mlx_manager.mlx_server.parsers.pieces import (
    Piece,
    Reasoning,
    Text,
    ToolCallArguments,
    ToolCallBroken,
    ToolCallEnd,
    ToolCallStart,
)
from mlx_manager.mlx_server.services.choice_text import Output
from mlx_manager.mlx_server.types import ReasoningDelta, TextDelta, ToolCallDelta, ToolCallStarted

Delta = TextDelta | ReasoningDelta | ToolCallStarted | ToolCallDelta


class DeltaWriter:
    """Writes the deltas of one choice.

    A client cannot retract a call that has started, so a broken call stays as sent and its text follows.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._calls = 0

    def __call__(self, output: Output) -> list[Delta]:
        """The last text delta carries the logprobs."""
        if len(output.pieces) == 1 and type(text := output.pieces[0]) is Text:
            return [TextDelta(self._index, text.text, output.logprobs)]
        last_text = next((piece for piece in reversed(output.pieces) if isinstance(piece, Text)), None)
        deltas: list[Delta] = []
        for piece in output.pieces:
            if piece is last_text:
                deltas.append(TextDelta(self._index, last_text.text, output.logprobs))
            else:
                deltas += self._delta(piece)
        if output.logprobs and last_text is None:
            deltas.append(TextDelta(self._index, "", output.logprobs))
        return deltas

    def _delta(self, piece: Piece) -> Iterator[Delta]:
        match piece:
            case Text(text):
                yield TextDelta(self._index, text)
            case Reasoning(text):
                yield ReasoningDelta(self._index, text)
            case ToolCallStart(name):
                self._calls += 1
                yield ToolCallStarted(self._index, self._calls - 1, f"call_{uuid.uuid4().hex}", name)
            case ToolCallArguments(text):
                yield ToolCallDelta(self._index, self._calls - 1, text)
            case ToolCallEnd() | ToolCallBroken():
                pass
            case _:
                assert_never(piece)
