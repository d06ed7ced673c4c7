"""The engine's scores to the logprobs of an answer: named, placed in its text, and held until their text is sent."""

from collections.abc import Sequence

from mlx_manager.mlx_server.engine.sequences import Score
from mlx_manager.mlx_server.models.detokenizing import StreamingDetokenizer
from mlx_manager.mlx_server.models.token_texts import TokenTexts
from mlx_manager.mlx_server.types import Logprobs, TokenLogprob, TopLogprob

Spans = Sequence[tuple[int, int]]


class LogprobLedger:
    """The logprobs of the tokens whose text is still held. `begin` is where the output begins in the choice's text."""

    def __init__(self, texts: TokenTexts, begin: int = 0) -> None:
        self._texts = texts
        self.decoded = 0
        self._begin = begin
        self._sent = 0
        self._without_text: list[TokenLogprob] = []
        self._held: list[tuple[int, int, TokenLogprob]] = []

    def add(self, token: int, score: Score | None, text: str) -> None:
        """`text` is what the detokenizer gave for the token: nothing while a character, or a special token, lasts."""
        self._without_text.append(self._entry(token, score))
        self.place(text)

    def place(self, text: str) -> None:
        """The text of all tokens that had none yet."""
        if text:
            begin, self.decoded = self.decoded, self.decoded + len(text)
            self._held += [(begin, self.decoded, entry) for entry in self._without_text]
            self._without_text = []

    def release(self, sent: int, spans: Spans, is_whole: bool) -> Logprobs:
        """Those whose text lies in one of `spans` and ends with the next `sent` characters of all spans together.

        The spans are the stretches of the output that are the choice's text. A token before the last of them that lies
        in none is dropped. At the end of a whole output that ends in text, its tokens without text come too.
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
    """Of all tokens of a prompt; `scores` are those from its second on."""
    ledger = LogprobLedger(texts)
    for token, score in zip(tokens, [None, *scores], strict=True):
        ledger.add(token, score, detokenizer.feed([token]))
    ledger.place(detokenizer.flush())
    return ledger.release(ledger.decoded, [(0, ledger.decoded)], is_whole=True)


def _place(begin: int, end: int, spans: Spans) -> int | None:
    """Where a token's text ends in the text of all spans together; None for a token that lies in none of them."""
    before = 0
    for first, last in spans:
        if first <= begin and end <= last:
            return before + end - first
        before += last - first
    return None
