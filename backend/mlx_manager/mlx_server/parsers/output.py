"""A model's output, parsed as it comes: first the reasoning, then text and calls. Formats plug in as `CallFormat`s."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mlx_manager.mlx_server.parsers.pieces import Piece, Reasoning, Text, Tool
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source

Tools = tuple[Tool, ...]


class CallFormat(Protocol):
    """How a family writes calls."""

    @property
    def begins(self) -> tuple[str, ...]:
        """What a call, or a row of calls, may begin with."""
        ...

    @property
    def unmarked(self) -> tuple[str, ...]:
        """Those of `begins` that are ordinary text more often than not: when no call follows, nothing was broken."""
        ...

    @property
    def separators(self) -> tuple[str, ...]:
        """What may stand between two calls, beside whitespace, and is no text."""
        ...

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        """Emits the calls behind `begin`, which is consumed. Raises Malformed where they are none."""
        ...


Formats = Mapping[str, CallFormat]
"""By what their calls begin with."""


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """What reasoning stands between. Where a marker is longer than its special token, `tokens` has that one."""

    start: str
    end: str
    tokens: tuple[str, ...] = ()

    @property
    def special_tokens(self) -> frozenset[str]:
        return frozenset({self.start, self.end, *self.tokens})


class OutputParser:
    """`feed(text) -> pieces`, `flush() -> pieces` at the output's end. How the text is cut makes no difference.

    Text is held back only as far as a marker, or whitespace before one, may have begun.
    """

    def __init__(
        self, parse: Callable[[Source], Parse[None]], tools: Iterable[Tool], opened_reasoning: bool = False
    ) -> None:
        self._source = Source(in_reasoning=opened_reasoning, names={tool.name for tool in tools})
        self._parsing = parse(self._source)

    @property
    def in_reasoning(self) -> bool:
        """Whether what has been read ends inside of reasoning."""
        return self._source.in_reasoning

    @property
    def text_spans(self) -> list[tuple[int, int]]:
        """Where in the output, in characters, the text stands that was given as `Text` so far.

        No text will stand before the last span's beginning; it may be empty, to say so.
        """
        return self._source.text_spans

    @property
    def broken_calls(self) -> int:
        """Calls that did not parse; their text was sent as text."""
        return self._source.broken_calls

    def pass_on(self, text: str) -> Text | Reasoning | None:
        """The one piece that `feed` would give, at once, where that is sure to be the text; else None."""
        return self._source.pass_on(text)

    def feed(self, text: str) -> list[Piece]:
        passed = self.pass_on(text)
        if passed is not None:
            return [passed]
        self._source.feed(text)
        next(self._parsing, None)
        return self._source.drain()

    def flush(self, *, is_cut_off: bool = False) -> list[Piece]:
        """`is_cut_off` when it was not the model that ended the output: it may have left a call's last marks out."""
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
        yield from source.rest(source.says(Text))


def _parse_reasoning(
    source: Source, markers: ReasoningMarkers, opened: bool, formats: Formats, tools: Tools
) -> Parse[None]:
    """A model whose reasoning was closed for it may begin again: all blocks before the answer are reasoning."""
    source.mark()
    yield from source.skip_space()
    while (yield from source.accept(markers.start)) or opened:
        opened = False
        source.forget()
        source.in_reasoning = True
        yield from source.skip_space()
        yield from _read_thoughts(source, markers, formats, tools)
        source.in_reasoning = False
        source.forget()
        yield from source.skip_space()
    source.give_back(Malformed("the output does not begin with reasoning"), looked_like_a_call=False)


def _read_thoughts(source: Source, markers: ReasoningMarkers, formats: Formats, tools: Tools) -> Parse[None]:
    """Calls at the end of thoughts behind which the output ends are calls; all others are thoughts."""
    begins = tuple(begin for begin, call in formats.items() if begin not in call.unmarked)
    think = source.says(Reasoning)
    while True:
        found = yield from source.until((markers.end, *begins), think, trim=True)
        if found is None or found == markers.end:
            return
        source.hold()
        if (yield from _ends_with_calls(source, found, markers, formats, tools)):
            source.release()
            return
        think(source.discard())


def _ends_with_calls(
    source: Source, begin: str, markers: ReasoningMarkers, formats: Formats, tools: Tools
) -> Parse[bool]:
    """Whether the output is calls from `begin` to its end; reads no further than where it is not."""
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
    while (begin := (yield from source.until(begins, source.says(Text), trim=True))) is not None:
        call = formats[begin]
        try:
            yield from call.read(source, begin, tools)
        except Malformed as reason:
            source.give_back(reason, looked_like_a_call=begin not in call.unmarked)
        else:
            yield from _skip_separator(source, call)


def _skip_separator(source: Source, call: CallFormat) -> Parse[None]:
    """Whitespace behind a call goes, and so does a separator when another call may follow it."""
    source.forget()
    yield from source.skip_space()
    source.mark()
    if (yield from source.accept(*call.separators)):
        yield from source.skip_space()
        following = yield from source.peek()
        if following and not any(begin.startswith(following) for begin in call.begins):
            source.give_back(Malformed("text follows the calls"), looked_like_a_call=False)
    source.forget()
