"""Turns the engine's scores into logprobs: names tokens, gives text offsets, holds each until its text is sent."""

from collections.abc import Sequence

from mlx_manager.mlx_server.engine.sequences import Score
from mlx_manager.mlx_server.models.detokenizing import StreamingDetokenizer
from mlx_manager.mlx_server.models.token_texts import TokenTexts
from mlx_manager.mlx_server.types import Logprobs, TokenLogprob, TopLogprob

Spans = Sequence[tuple[int, int]]


class LogprobLedger:
    """Logprobs of tokens whose text is not sent yet. `begin` is the offset of the output in the choice's text."""

    def __init__(self, texts: TokenTexts, begin: int = 0) -> None:
        self._texts = texts
        self.decoded = 0
        self._begin = begin
        self._sent = 0
        self._without_text: list[TokenLogprob] = []
        self._held: list[tuple[int, int, TokenLogprob]] = []

    def add(self, token: int, score: Score | None, text: str) -> None:
        """`text` is the detokenizer's output for the token: empty for an incomplete character or a special token."""
        self._without_text.append(self._entry(token, score))
        self.place(text)

    def place(self, text: str) -> None:
        """Gives `text` to all tokens that have no text yet."""
        if text:
            begin, self.decoded = self.decoded, self.decoded + len(text)
            self._held += [(begin, self.decoded, entry) for entry in self._without_text]
            self._without_text = []

    def release(self, sent: int, spans: Spans, is_whole: bool) -> Logprobs:
        """Logprobs of tokens inside `spans` whose text ends within the next `sent` characters of all spans together.

        The spans are the parts of the output that are the choice's text. A token before the last span and outside all
        spans is dropped. With `is_whole`, an output that ends in text also releases its tokens without text.
        """
        self._sent += sent
        released: list[TokenLogprob] = []
        held: list[tuple[int, int, TokenLogprob]] = []
        for begin, end, entry in self._held:
            place = _place(begin, end, spans)
            if place is not None and place <= self._sent:
                released.append(entry)
            elif place is not None or begin >= spans[-1][0]:
                held.append((begin, end, entry))
        self._held = held
        if is_whole and spans[-1][0] < spans[-1][1] == self.decoded:
            released += self._without_text
        return tuple(released)

    def _entry(self, token: int, score: Score | None) -> TokenLogprob:
        name, content = self._texts(token)
        if score is None:
            return TokenLogprob(name, 0.0, content, (), self._begin + self.decoded, predicted=False)
        top = tuple(self._top(*likely) for likely in zip(score.top_tokens, score.top, strict=True))
        return TokenLogprob(name, score.logprob, content, top, self._begin + self.decoded)

    def _top(self, token: int, logprob: float) -> TopLogprob:
        name, content = self._texts(token)
        return TopLogprob(name, logprob, content)


def prompt_logprobs(
    texts: TokenTexts, tokens: list[int], scores: list[Score], detokenizer: StreamingDetokenizer
) -> Logprobs:
    """Logprobs of all prompt tokens; `scores` start at the second token."""
    ledger = LogprobLedger(texts)
    for token, score in zip(tokens, [None, *scores], strict=True):
        ledger.add(token, score, detokenizer.feed([token]))
    ledger.place(detokenizer.flush())
    return ledger.release(ledger.decoded, [(0, ledger.decoded)], is_whole=True)


def _place(begin: int, end: int, spans: Spans) -> int | None:
    """Where a token's text ends in the text of all spans together; None for a token outside all spans."""
    before = 0
    for first, last in spans:
        if first <= begin and end <= last:
            return before + end - first
        before += last - first
    return None
