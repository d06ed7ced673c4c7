"""Parses a model's output incrementally: first reasoning, then text and calls. `CallFormat` reads the calls."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mlx_manager.mlx_server.parsers.pieces import Piece, Reasoning, Text, Tool
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source

Tools = tuple[Tool, ...]


class CallFormat(Protocol):
    """The call format of a model family."""

    @property
    def begins(self) -> tuple[str, ...]:
        """Texts that begin a call or a sequence of calls."""
        ...

    @property
    def unmarked(self) -> tuple[str, ...]:
        """The `begins` that are usually ordinary text: without a call after them, no call counts as broken."""
        ...

    @property
    def separators(self) -> tuple[str, ...]:
        """Separators between two calls, in addition to whitespace. They are not text."""
        ...

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        """Emits the calls after the consumed `begin`. Raises Malformed if there is no valid call."""
        ...


Formats = Mapping[str, CallFormat]
"""Keyed by the beginning of their calls."""


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """The markers around reasoning. `tokens`: the special tokens inside markers that are longer than one token."""

    start: str
    end: str
    tokens: tuple[str, ...] = ()

    @property
    def special_tokens(self) -> frozenset[str]:
        return frozenset({self.start, self.end, *self.tokens})


class OutputParser:
    """`feed(text) -> pieces`, `flush() -> pieces` at the end. The result does not depend on how the text is split.

    Holds back only text that may be the beginning of a marker, or whitespace before a marker.
    """

    def __init__(
        self, parse: Callable[[Source], Parse[None]], tools: Iterable[Tool], opened_reasoning: bool = False
    ) -> None:
        self._source = Source(in_reasoning=opened_reasoning, names={tool.name for tool in tools})
        self._parsing = parse(self._source)

    @property
    def in_reasoning(self) -> bool:
        """Whether the text read so far ends inside reasoning."""
        return self._source.in_reasoning

    @property
    def text_spans(self) -> list[tuple[int, int]]:
        """The character spans of the output that were returned as `Text` so far.

        No later text precedes the beginning of the last span, which may be empty.
        """
        return self._source.text_spans

    @property
    def broken_calls(self) -> int:
        """Number of malformed calls, which were returned as text."""
        return self._source.broken_calls

    def pass_on(self, text: str) -> Text | Reasoning | None:
        """A fast `feed` for text without a possible marker: its single piece, else None."""
        return self._source.pass_on(text)

    def feed(self, text: str) -> list[Piece]:
        passed = self.pass_on(text)
        if passed is not None:
            return [passed]
        self._source.feed(text)
        next(self._parsing, None)
        return self._source.drain()

    def flush(self, *, is_cut_off: bool = False) -> list[Piece]:
        """`is_cut_off`: the output ended before the model finished, so a last call without end marker is incomplete."""
        self._source.ended = True
        self._source.is_cut_off = is_cut_off
        for _ in self._parsing:
            pass
        return self._source.drain()


def parse_output(
    source: Source, calls: tuple[CallFormat, ...], tools: Tools, reasoning: ReasoningMarkers | None, opened: bool
) -> Parse[None]:
    formats = {begin: call for call in reversed(calls) for begin in call.begins} if tools else {}
    if reasoning is not None:
        yield from _parse_reasoning(source, reasoning, opened, formats, tools)
    if formats:
        yield from _parse_content(source, formats, tools)
    else:
        yield from source.rest(source.piece_sink(Text))


def _parse_reasoning(
    source: Source, markers: ReasoningMarkers, opened: bool, formats: Formats, tools: Tools
) -> Parse[None]:
    """Reads all reasoning blocks before the answer: a model may reopen reasoning that the server closed."""
    source.mark()
    yield from source.skip_space()
    while (yield from source.accept(markers.start)) or opened:
        opened = False
        source.forget()
        source.in_reasoning = True
        yield from source.skip_space()
        yield from _read_reasoning(source, markers, formats, tools)
        source.in_reasoning = False
        source.forget()
        yield from source.skip_space()
    source.give_back(Malformed("the output does not begin with reasoning"), looked_like_a_call=False)


def _read_reasoning(source: Source, markers: ReasoningMarkers, formats: Formats, tools: Tools) -> Parse[None]:
    """Reads reasoning. Calls inside reasoning are reasoning, unless the output ends after them."""
    begins = tuple(begin for begin, call in formats.items() if begin not in call.unmarked)
    sink = source.piece_sink(Reasoning)
    while True:
        found = yield from source.until((markers.end, *begins), sink, trim=True)
        if found is None or found == markers.end:
            return
        source.hold()
        if (yield from _ends_with_calls(source, found, markers, formats, tools)):
            source.release()
            return
        sink(source.discard())


def _ends_with_calls(
    source: Source, begin: str, markers: ReasoningMarkers, formats: Formats, tools: Tools
) -> Parse[bool]:
    """Whether only calls follow up to the end of the output. Stops reading at the first other text."""
    marked = tuple(begin for begin, call in formats.items() if begin not in call.unmarked)
    following: str | None = begin
    while following is not None:
        try:
            yield from formats[following].read(source, following, tools)
        except Malformed:
            return False
        source.settle()
        yield from source.skip_space()
        yield from source.accept(*formats[following].separators)
        yield from source.skip_space()
        following = yield from source.accept(*marked)
    yield from source.accept(markers.end)
    yield from source.skip_space()
    return not (yield from source.available())


def _parse_content(source: Source, formats: Formats, tools: Tools) -> Parse[None]:
    begins = tuple(formats)
    while (begin := (yield from source.until(begins, source.piece_sink(Text), trim=True))) is not None:
        call = formats[begin]
        try:
            yield from call.read(source, begin, tools)
        except Malformed as reason:
            source.give_back(reason, looked_like_a_call=begin not in call.unmarked)
        else:
            yield from _skip_separator(source, call)


def _skip_separator(source: Source, call: CallFormat) -> Parse[None]:
    """Drops whitespace after a call, and a separator if another call may follow."""
    source.forget()
    yield from source.skip_space()
    source.mark()
    if (yield from source.accept(*call.separators)):
        yield from source.skip_space()
        following = yield from source.peek()
        if following and not any(begin.startswith(following) for begin in call.begins):
            source.give_back(Malformed("text follows the calls"), looked_like_a_call=False)
    source.forget()
