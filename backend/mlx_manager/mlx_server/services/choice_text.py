"""Turns the tokens of one choice into output: detokenised, parsed, cut at stop strings, with logprobs."""

import msgspec

from mlx_manager.mlx_server.engine.sequences import Tokens
from mlx_manager.mlx_server.models.detokenizing import StreamingDetokenizer
from mlx_manager.mlx_server.parsers.output import OutputParser
from mlx_manager.mlx_server.parsers.pieces import Piece, Text, ToolCallEnd, ToolCallStart, joined
from mlx_manager.mlx_server.parsers.stop import StopStringParser
from mlx_manager.mlx_server.services.logprobs import LogprobLedger
from mlx_manager.mlx_server.types import FinishReason, GenerationRequest, Logprobs


class Output(msgspec.Struct, frozen=True):
    """`logprobs` belong to the tokens whose text these pieces complete. A Struct for speed, like Tokens."""

    pieces: list[Piece] = []
    logprobs: Logprobs = ()


class ChoiceText:
    """The output of one choice, without stop tokens and stop strings.

    Stop strings match in the text only, not in reasoning or tool calls. Logprobs cover the text's tokens: each comes
    with the token's text, and is dropped if any of that text is cut off.
    """

    def __init__(
        self,
        detokenizer: StreamingDetokenizer,
        parser: OutputParser,
        request: GenerationRequest,
        ledger: LogprobLedger | None = None,
        one_call: bool = False,
    ) -> None:
        """With `one_call` the choice ends after its first tool call."""
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._detokenizer = detokenizer
        self._parser = parser
        self._stop = StopStringParser(request.stop, include=request.include_stop)
        self._has_stops = bool(request.stop)
        self._min_tokens = request.min_tokens
        self._include_stop = request.include_stop
        self._ledger = ledger
        self._one_call = one_call
        self._has_called = False

    @property
    def matched_stop(self) -> str | None:
        return self._stop.matched

    @property
    def broken_calls(self) -> int:
        return self._parser.broken_calls

    def feed(self, tokens: Tokens) -> Output:
        """Output that may be sent. Sets `finish_reason` at the end; tokens after the stop are not counted."""
        has_end_token = tokens.finish_reason == "stop" and not self._include_stop
        text_tokens = tokens.token_ids[:-1] if has_end_token else tokens.token_ids
        pieces: list[Piece] = []
        for i, token in enumerate(text_tokens):
            text = self._detokenizer.feed([token])
            self.completion_tokens += 1
            if self._ledger is not None:
                self._ledger.add(token, tokens.scores[i], text)
            piece = None if self._has_stops else self._parser.pass_on(text)
            if piece is not None:
                self.reasoning_tokens += self._parser.in_reasoning
                pieces.append(piece)
                continue
            pieces += self._visible(self._parse(text))
            if self.finish_reason is not None:
                return self._output(pieces)
        if tokens.finish_reason is not None:
            self.completion_tokens += len(tokens.token_ids) - len(text_tokens)
            pieces += self._flush(is_cut_off=tokens.finish_reason == "length")
            if self.finish_reason is None:
                self.finish_reason = self._reason(tokens.finish_reason)
        return self._output(pieces)

    def _parse(self, text: str) -> list[Piece]:
        was_in_reasoning = self._parser.in_reasoning
        pieces = self._parser.feed(text)
        self.reasoning_tokens += was_in_reasoning or self._parser.in_reasoning
        return pieces

    def _visible(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces before the end of the choice: a stop string, or its first tool call with `one_call`."""
        visible: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Text):
                searched = self.completion_tokens > self._min_tokens
                visible += _text(self._stop.feed(piece.text) if searched else piece.text)
            elif isinstance(piece, ToolCallStart):
                visible += [*_text(self._stop.flush()), piece]
            else:
                visible.append(piece)
            self._has_called |= isinstance(piece, ToolCallEnd)
            if self._stop.matched is not None or (self._one_call and self._has_called):
                self.finish_reason = self._reason("stop")
                break
        return visible

    def _reason(self, reason: FinishReason) -> FinishReason:
        return "tool_calls" if reason == "stop" and self._has_called else reason

    def _flush(self, *, is_cut_off: bool) -> list[Piece]:
        text = self._detokenizer.flush()
        if self._ledger is not None:
            self._ledger.place(text)
        visible = self._visible(self._parser.feed(text) + self._parser.flush(is_cut_off=is_cut_off))
        return visible if self.finish_reason is not None else [*visible, *_text(self._stop.flush())]

    def _output(self, pieces: list[Piece]) -> Output:
        pieces = joined(pieces) if len(pieces) > 1 else pieces
        if self._ledger is None:
            return Output(pieces)
        sent = sum(len(piece.text) for piece in pieces if isinstance(piece, Text))
        is_whole = self.finish_reason is not None and self._stop.matched is None
        return Output(pieces, self._ledger.release(sent, self._parser.text_spans, is_whole))


def _text(text: str) -> list[Piece]:
    return [Text(text)] if text else []
