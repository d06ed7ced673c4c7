"""One choice's tokens to the text that may be sent: detokenised, with the stop strings found."""

from mlx_manager.mlx_server.engine.client import Tokens
from mlx_manager.mlx_server.models.tokenization import StreamingDetokenizer
from mlx_manager.mlx_server.parsers.stop import StopStringParser
from mlx_manager.mlx_server.types import FinishReason


class ChoiceText:
    """The text of one choice as its tokens come: neither a stop token nor a stop string, or a part of one, is in it."""

    def __init__(self, detokenizer: StreamingDetokenizer, stop: tuple[str, ...]) -> None:
        self.completion_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._detokenizer = detokenizer
        self._stop = StopStringParser(stop)

    @property
    def matched_stop(self) -> str | None:
        return self._stop.matched

    def feed(self, tokens: Tokens) -> str:
        """What may be sent. Sets `finish_reason` at the end; tokens behind a stop string are not counted."""
        text_tokens = tokens.token_ids[:-1] if tokens.finish_reason == "stop" else tokens.token_ids
        text = ""
        for token in text_tokens:
            text += self._stop.feed(self._detokenizer.feed([token]))
            self.completion_tokens += 1
            if self._stop.matched is not None:
                self.finish_reason = "stop"
                return text
        if tokens.finish_reason is not None:
            self.completion_tokens += len(tokens.token_ids) - len(text_tokens)
            text += self._stop.feed(self._detokenizer.flush())
            text += self._stop.flush()
            self.finish_reason = "stop" if self._stop.matched is not None else tokens.finish_reason
        return text
