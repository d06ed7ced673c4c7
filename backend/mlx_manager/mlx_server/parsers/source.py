"""The text of an output as it comes, for parsers that are written as if all of it were there.

A parser is a generator: it yields where it has to wait for text, and goes on when there is some. What it reads depends
on the text alone, never on how it was cut, for each step waits until the text decides it.
"""

import logging
import re
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from mlx_manager.mlx_server.parsers.pieces import (
    Piece,
    Reasoning,
    Text,
    ToolCallBroken,
    ToolCallEnd,
    ToolCallStart,
    joined,
    known_name,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
Parse = Generator[None, None, T]
Sink = Callable[[str], None]

SPACE = " \t\r\n"


class Malformed(Exception):
    """The text is no tool call of its format. The message says why, and holds none of the text."""


def possible_beginning(text: str, markers: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that one of the markers begins with and is longer than."""
    longest = min(len(text), max(map(len, markers), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(marker.startswith(text[-n:]) for marker in markers)), 0)


@dataclass(slots=True)
class _Held:
    settled: str
    unsettled: list[str] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Saying:
    source: "Source"
    kind: type[Text] | type[Reasoning]

    def __call__(self, text: str) -> None:
        self.source.emit(self.kind(text))


class Source:
    """Unread text, the pieces made of what was read, and the raw text of a call so that it can be given back.

    `is_cut_off` says of an output that has ended that the model would have gone on.

    `text_spans` are the stretches of the output, in characters, that were sent as text. The last may be an empty one,
    before which nothing will be text any more.
    """

    def __init__(self, in_reasoning: bool = False, names: Collection[str] = ()) -> None:
        """`names` are those of the tools."""
        self.ended = False
        self.is_cut_off = False
        self.broken_calls = 0
        self.in_reasoning = in_reasoning
        self.text_spans = [(0, 0)]
        self._names = names
        self._taken = 0
        self._unread = ""
        self._at = 0
        self._raw: list[str] | None = None
        self._held: _Held | None = None
        self._pieces: list[Piece] = []
        self._call_is_open = False
        self._passing: tuple[type[Text] | type[Reasoning], Callable[[str], object]] | None = None
        """While the parser waits for a marker: what text before it is, and which text is surely before it."""

    def feed(self, text: str) -> None:
        self._passing = None
        self._unread = self._unread[self._at :] + text
        self._at = 0

    def pass_on(self, text: str) -> Text | Reasoning | None:
        """The piece that the text is by itself, where nothing can begin in it that the parser waits for: no `feed`."""
        if self._passing is None or self._at < len(self._unread) or self._raw is not None:
            return None
        kind, is_plain = self._passing
        if not is_plain(text):
            return None
        begin = self._taken
        self._taken += len(text)
        self._add_span(begin if kind is Text else self._taken)
        return kind(text)

    def says(self, kind: type[Text] | type[Reasoning]) -> Sink:
        """Emits text as pieces of that kind."""
        return _Saying(self, kind)

    def drain(self) -> list[Piece]:
        pieces, self._pieces = joined(self._pieces), []
        return pieces

    def emit(self, piece: Piece) -> None:
        if isinstance(piece, ToolCallStart):
            piece = ToolCallStart(known_name(piece.name, self._names))
        if self._held is not None:
            self._held.pieces.append(piece)
            return
        self._pieces.append(piece)
        if isinstance(piece, Text):
            self._add_span(self._taken - len(piece.text))
        elif isinstance(piece, Reasoning):
            self._add_span(self._taken)
        elif isinstance(piece, ToolCallStart):
            self._call_is_open = True
        elif isinstance(piece, ToolCallEnd | ToolCallBroken):
            self._call_is_open = False

    def mark(self) -> None:
        """From here on text is kept, until `forget`, so that `give_back` can send it."""
        self._raw = []

    def marked(self) -> str:
        """The text since `mark`."""
        return "".join(self._raw or ())

    def forget(self) -> None:
        self._raw = None
        self._add_span(self._taken)

    def give_back(self, reason: Malformed, *, looked_like_a_call: bool) -> None:
        """Sends the text since `mark` as text. It is a broken call when it was announced, or had a call's marker."""
        if self._call_is_open or looked_like_a_call:
            self.broken_calls += 1
            logger.warning("A tool call did not parse and is sent as text: %s", reason)
        if self._call_is_open:
            self.emit(ToolCallBroken())
        if raw := self.marked():
            self.emit(Text(raw))
        self._raw = None

    def hold(self) -> None:
        """From here on pieces are held, with the text since `mark`, until `release` or `discard`."""
        self._held = _Held(self.marked())

    def settle(self) -> None:
        """What is held stays one text, also when it is discarded."""
        if self._held is not None:
            self._held.settled += "".join(self._held.unsettled)
            self._held.unsettled.clear()

    def release(self) -> None:
        """Sends what was held."""
        held, self._held = self._held, None
        for piece in held.pieces if held is not None else ():
            self.emit(piece)

    def discard(self) -> str:
        """Forgets the pieces that were held, and gives the settled text; what came behind it comes next once more."""
        held = self._held
        assert held is not None
        self.put_back("".join(held.unsettled))
        self._held = None
        return held.settled

    def take(self, length: int) -> str:
        text = self._unread[self._at : self._at + length]
        self._at += length
        self._taken += len(text)
        for record in self._records():
            record.append(text)
        return text

    def put_back(self, text: str) -> None:
        """`text`, which was taken last, comes next once more."""
        self._unread = text + self._unread[self._at :]
        self._at = 0
        self._taken -= len(text)
        for record in self._records():
            whole = "".join(record)
            record[:] = [whole[: len(whole) - len(text)]]

    def available(self) -> Parse[bool]:
        """Waits for a character; False at the end of the output."""
        while self._at >= len(self._unread):
            if self.ended:
                return False
            yield
        return True

    def is_complete(self) -> Parse[bool]:
        """Whether the model ended its output here."""
        return not (yield from self.available()) and not self.is_cut_off

    def peek(self) -> Parse[str]:
        """The next character, not consumed; "" at the end of the output."""
        return self._unread[self._at] if (yield from self.available()) else ""

    def accept(self, *options: str) -> Parse[str | None]:
        """Consumes the longest of `options` that comes next; None, and nothing consumed, when none does."""
        found = yield from self.sees(*options)
        if found is not None:
            self.take(len(found))
        return found

    def sees(self, *options: str) -> Parse[str | None]:
        """The longest of `options` that comes next, not consumed."""
        longest = max(map(len, options), default=0)
        while True:
            rest = self._unread[self._at : self._at + longest]
            if self.ended or not any(len(option) > len(rest) and option.startswith(rest) for option in options):
                break
            yield
        return max((option for option in options if rest.startswith(option)), key=len, default=None)

    def expect(self, *options: str) -> Parse[str]:
        found = yield from self.accept(*options)
        if found is None:
            raise Malformed(f"expected {' or '.join(map(repr, options))}")
        return found

    def run(self, pattern: re.Pattern[str], sink: Sink) -> Parse[None]:
        """Passes on the characters that match `pattern` (one or more of a class), as they come."""
        while (yield from self.available()):
            if not (found := pattern.match(self._unread, self._at)):
                return
            sink(self.take(found.end() - self._at))

    def word(self, pattern: re.Pattern[str]) -> Parse[str]:
        parts: list[str] = []
        yield from self.run(pattern, parts.append)
        return "".join(parts)

    def skip_space(self) -> Parse[None]:
        yield from self.run(_SPACES, lambda text: None)

    def rest(self, sink: Sink) -> Parse[None]:
        """Passes on all text to the end of the output as it comes."""
        self._wait_in(sink, bool)
        while (yield from self.available()):
            sink(self.take(len(self._unread) - self._at))
            self._wait_in(sink, bool)

    def until(self, markers: tuple[str, ...], sink: Sink, *, trim: bool = False) -> Parse[str | None]:
        """Passes on the text before the first of `markers` as it comes, and consumes and returns the marker.

        None at the end of the output. With `trim`, whitespace before the marker is not passed on, and what is consumed
        from there on is marked.
        """
        while True:
            if found := _any_of(markers).search(self._unread, self._at):
                before = self._unread[self._at : found.start()]
                ready = len(before.rstrip(SPACE)) if trim else len(before)
                self._pass(ready, sink)
                if trim:
                    self.mark()
                self.take(found.end() - self._at)
                return found[0]
            unread = self._unread[self._at :]
            if self.ended:
                self._pass(len(unread), sink)
                return None
            ready = len(unread) - possible_beginning(unread, markers)
            self._pass(len(unread[:ready].rstrip(SPACE)) if trim else ready, sink)
            self._wait_in(sink, _none_of(markers, trim))
            yield

    def text_until(self, *markers: str) -> Parse[str]:
        """The text before the first of `markers`, which is consumed."""
        parts: list[str] = []
        if (yield from self.until(markers, parts.append)) is None:
            raise Malformed(f"the output ended before {markers[-1]!r}")
        return "".join(parts)

    def _wait_in(self, sink: Sink, is_plain: Callable[[str], object]) -> None:
        self._passing = (sink.kind, is_plain) if isinstance(sink, _Saying) else None

    def _records(self) -> list[list[str]]:
        held = [self._held.unsettled] if self._held is not None else []
        return [self._raw, *held] if self._raw is not None else held

    def _add_span(self, begin: int) -> None:
        """From `begin` to what is taken by now; spans that touch become one, and an empty one gives way."""
        first, last = self.text_spans[-1]
        if last == begin:
            self.text_spans[-1] = (first, self._taken)
        elif first == last:
            self.text_spans[-1] = (begin, self._taken)
        else:
            self.text_spans.append((begin, self._taken))

    def _pass(self, length: int, sink: Sink) -> None:
        if length:
            sink(self.take(length))


@lru_cache
def _none_of(markers: tuple[str, ...], trim: bool) -> Callable[[str], re.Match[str] | None]:
    """Matches text that one of `markers` cannot begin in; with `trim`, nor whitespace before one at its end."""
    beginnings = re.escape("".join(marker[0] for marker in markers))
    other = f"[^{beginnings}]" if beginnings else r"[\s\S]"
    return re.compile(f"{other}*[^{beginnings}{SPACE}]" if trim else f"{other}+").fullmatch


_SPACES = re.compile(f"[{SPACE}]+")


@lru_cache
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Matches one of `markers`, the longer one where two begin alike; without markers, nothing."""
    return re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or r"(?!)")
