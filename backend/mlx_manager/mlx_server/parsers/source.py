"""The incoming text of an output, for parsers that are written as if it were complete.

A parser is a generator that yields while it waits for text. Each step waits until the text determines its result, so
the result does not depend on how the text is split.
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
    """The text is not a valid tool call of the format. The message has the reason, without any of the text."""


def possible_beginning(text: str, markers: tuple[str, ...]) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of a marker."""
    longest = min(len(text), max(map(len, markers), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(marker.startswith(text[-n:]) for marker in markers)), 0)


@dataclass(slots=True)
class _Held:
    settled: str
    unsettled: list[str] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _PieceSink:
    source: "Source"
    kind: type[Text] | type[Reasoning]

    def __call__(self, text: str) -> None:
        self.source.emit(self.kind(text))


class Source:
    """The unread text, the pieces made of the read text, and the raw text of a call, which `give_back` can restore.

    `is_cut_off`: the output ended before the model finished.

    `text_spans`: the spans of the output, in characters, that were sent as text. No later text precedes the last
    span, which may be empty.
    """

    def __init__(self, in_reasoning: bool = False, names: Collection[str] = ()) -> None:
        """`names`: the names of the tools."""
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
        """Set while the parser waits for a marker: the piece type of the text before it, and a test for such text."""

    def feed(self, text: str) -> None:
        self._passing = None
        self._unread = self._unread[self._at :] + text
        self._at = 0

    def pass_on(self, text: str) -> Text | Reasoning | None:
        """The piece for the text if no awaited marker can begin in it; the caller then skips `feed`. Else None."""
        if self._passing is None or self._at < len(self._unread) or self._raw is not None:
            return None
        kind, is_plain = self._passing
        if not is_plain(text):
            return None
        begin = self._taken
        self._taken += len(text)
        self._add_span(begin if kind is Text else self._taken)
        return kind(text)

    def piece_sink(self, kind: type[Text] | type[Reasoning]) -> Sink:
        """A sink that emits text as pieces of that kind."""
        return _PieceSink(self, kind)

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
        """Records text from here until `forget`, so that `give_back` can send it."""
        self._raw = []

    def marked(self) -> str:
        """The text since `mark`."""
        return "".join(self._raw or ())

    def forget(self) -> None:
        self._raw = None
        self._add_span(self._taken)

    def give_back(self, reason: Malformed, *, looked_like_a_call: bool) -> None:
        """Sends the text since `mark` as text. Counts a broken call if a call was open or had a marker."""
        if self._call_is_open or looked_like_a_call:
            self.broken_calls += 1
            logger.warning("Malformed tool call is sent as text: %s", reason)
        if self._call_is_open:
            self.emit(ToolCallBroken())
        if raw := self.marked():
            self.emit(Text(raw))
        self._raw = None

    def hold(self) -> None:
        """Holds pieces, and the text since `mark`, until `release` or `discard`."""
        self._held = _Held(self.marked())

    def settle(self) -> None:
        """Makes the held text permanent: `discard` will not put it back."""
        if self._held is not None:
            self._held.settled += "".join(self._held.unsettled)
            self._held.unsettled.clear()

    def release(self) -> None:
        """Sends the held pieces."""
        held, self._held = self._held, None
        for piece in held.pieces if held is not None else ():
            self.emit(piece)

    def discard(self) -> str:
        """Drops the held pieces, puts the unsettled text back, and returns the settled text."""
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
        """Makes `text`, which was taken last, unread again."""
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
        """Consumes the longest of `options` that comes next. Returns None and consumes nothing without a match."""
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
        """Writes the characters that match `pattern` (one or more of a class) to `sink` as they arrive."""
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
        """Writes all text up to the end of the output to `sink` as it arrives."""
        self._wait_in(sink, bool)
        while (yield from self.available()):
            sink(self.take(len(self._unread) - self._at))
            self._wait_in(sink, bool)

    def until(self, markers: tuple[str, ...], sink: Sink, *, trim: bool = False) -> Parse[str | None]:
        """Writes the text before the first of `markers` to `sink` as it arrives. Consumes and returns the marker.

        Returns None at the end of the output. With `trim`, whitespace before the marker is not written, and `mark`
        starts there.
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
        """The text before the first of `markers`; consumes the marker."""
        parts: list[str] = []
        if (yield from self.until(markers, parts.append)) is None:
            raise Malformed(f"the output ended before {markers[-1]!r}")
        return "".join(parts)

    def _wait_in(self, sink: Sink, is_plain: Callable[[str], object]) -> None:
        self._passing = (sink.kind, is_plain) if isinstance(sink, _PieceSink) else None

    def _records(self) -> list[list[str]]:
        held = [self._held.unsettled] if self._held is not None else []
        return [self._raw, *held] if self._raw is not None else held

    def _add_span(self, begin: int) -> None:
        """Adds the span from `begin` to the taken text. Joins adjacent spans and replaces an empty last span."""
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
    """Matches text in which no marker can begin; with `trim`, also without whitespace at its end."""
    beginnings = re.escape("".join(marker[0] for marker in markers))
    other = f"[^{beginnings}]" if beginnings else r"[\s\S]"
    return re.compile(f"{other}*[^{beginnings}{SPACE}]" if trim else f"{other}+").fullmatch


_SPACES = re.compile(f"[{SPACE}]+")


@lru_cache
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Matches one of `markers`, preferring the longest; without markers, matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or r"(?!)")
