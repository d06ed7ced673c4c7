"""Incremental detokenization in the API process. Knows decoders, but no tokenizers and no requests."""

from collections.abc import Callable

from mlx_manager.mlx_server.models.token_texts import PlainTexts

CONTEXT_TOKENS = 8
MAX_HELD_TOKENS = 16
MAX_WINDOW_TOKENS = 64
REPLACEMENT = "\ufffd"


class StreamingDetokenizer:
    """Decodes tokens incrementally: `feed(tokens) -> text`, `flush() -> text`. Never splits a character.

    A token's text depends on its neighbours, so each piece is decoded together with the tokens of the piece before.
    Tokens in `plain` have the same text after any complete text. `context` has the prompt's last tokens, for answers
    that continue the prompt's text, as chat answers do not.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        context: list[int] | None = None,
        plain: PlainTexts | None = None,
    ) -> None:
        self._decode = decode
        self._plain = plain
        self._window = (context or [])[-CONTEXT_TOKENS:]
        self._context_tokens = len(self._window)
        text = decode(self._window) if self._window else ""
        self._sent = len(text)
        self._is_complete = self._is_behind_text() and not text.endswith(REPLACEMENT)
        """Whether a plain token may follow. Then all of the window is sent, and `_sent` does not apply."""

    def feed(self, tokens: list[int]) -> str:
        if self._is_complete and len(tokens) == 1 and self._plain is not None:
            text = self._plain[tokens[0]]
            if text is not None:
                self._window.append(tokens[0])
                if len(self._window) > MAX_WINDOW_TOKENS:
                    del self._window[:-CONTEXT_TOKENS]
                return text
        return self._feed_behind_context(tokens)

    def flush(self) -> str:
        return "" if self._is_complete else self._advance(self._decode(self._window), 0)

    def _feed_behind_context(self, tokens: list[int]) -> str:
        if self._is_complete:
            self._context_tokens, self._sent = len(self._window), len(self._decode(self._window))
            self._is_complete = False
        self._window += tokens
        text = self._decode(self._window)
        unfinished = text.endswith(REPLACEMENT)
        if unfinished and len(self._window) - self._context_tokens <= MAX_HELD_TOKENS:
            return ""  # wait for the last bytes of a character
        piece = self._advance(text, int(unfinished))
        self._is_complete = self._is_behind_text() and not unfinished
        return piece

    def _is_behind_text(self) -> bool:
        """False at the beginning of a text, where the decoder may drop a space."""
        return self._plain is not None and (self._sent > 0 or self._plain.begin_texts)

    def _advance(self, text: str, unfinished: int) -> str:
        """Returns the new text without its last `unfinished` characters, which later bytes may change."""
        piece = text[self._sent : len(text) - unfinished]
        if piece:
            self._window = self._window[-CONTEXT_TOKENS:] if unfinished else self._window[self._context_tokens :]
            self._context_tokens = len(self._window)
            self._sent = max(0, len(self._decode(self._window)) - unfinished)
        elif not unfinished and self._sent:
            del self._window[self._context_tokens :]  # special tokens have no text
        elif not unfinished:  # if the tokenizer added the first space, the next space is part of the text
            self._window, self._context_tokens = self._window[-CONTEXT_TOKENS:], 0
        return piece
