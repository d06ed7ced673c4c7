"""Token ids to text as they come. Knows decoders; knows no tokenizers, no requests. Runs in the API process."""

from collections.abc import Callable

CONTEXT_TOKENS = 8
MAX_HELD_TOKENS = 16
REPLACEMENT = "\ufffd"


class StreamingDetokenizer:
    """Text from tokens as they come: `feed(tokens) -> text`, `flush() -> text`. A character is never split.

    A token's text depends on its neighbours, so each piece is decoded behind the tokens of the piece before it.
    `context` are the prompt's last tokens where the text goes on from the prompt's own; a chat answer begins anew.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: list[int] | None = None) -> None:
        self._decode = decode
        self._window = (context or [])[-CONTEXT_TOKENS:]
        self._context_tokens = len(self._window)
        self._sent = len(decode(self._window)) if self._window else 0

    def feed(self, tokens: list[int]) -> str:
        self._window += tokens
        text = self._decode(self._window)
        unfinished = text.endswith(REPLACEMENT)
        if unfinished and len(self._window) - self._context_tokens <= MAX_HELD_TOKENS:
            return ""  # a character whose last bytes are still to come
        return self._advance(text, int(unfinished))

    def flush(self) -> str:
        return self._advance(self._decode(self._window), 0)

    def _advance(self, text: str, unfinished: int) -> str:
        """Gives the new text but its last `unfinished` characters, which more bytes may still change."""
        piece = text[self._sent : len(text) - unfinished]
        if piece:
            self._window = self._window[-CONTEXT_TOKENS:] if unfinished else self._window[self._context_tokens :]
            self._context_tokens = len(self._window)
            self._sent = max(0, len(self._decode(self._window)) - unfinished)
        elif not unfinished and self._sent:
            del self._window[self._context_tokens :]  # special tokens leave no text
        elif not unfinished:  # the text's first space may be its tokenizer's own, and then the next one is not
            self._window, self._context_tokens = self._window[-CONTEXT_TOKENS:], 0
        return piece
