"""FunctionGemma and Gemma 4: `call:name{key:value}` between markers. Gemma 3: Python, with or without a fence."""

import re
from dataclasses import dataclass
from typing import Any

from mlx_manager.mlx_server.parsers.arguments import ArgumentsWriter
from mlx_manager.mlx_server.parsers.loose_values import Dialect, read_string, read_value, word_value
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pieces import find_tool
from mlx_manager.mlx_server.parsers.pythonic import read_call_list, read_python_call
from mlx_manager.mlx_server.parsers.source import SPACE, Malformed, Parse, Source

_NAME = re.compile(r"[-.:/\w]+")
_KEY = re.compile(r"[-.\w]+")
_SPACES = re.compile(f"[{SPACE}]+")
_NEXT_KEY = re.compile(r"\s*,\s*([-.\w]+)\s*:\s*")


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    """`quote` begins and ends a string."""

    begin: str
    end: str
    quote: str
    unmarked: tuple[str, ...] = ()
    separators: tuple[str, ...] = ()

    @property
    def begins(self) -> tuple[str, ...]:
        return (self.begin,)

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        yield from source.skip_space()
        yield from source.accept("call:")
        name = (yield from source.word(_NAME)).strip(":")
        yield from source.skip_space()
        opened = yield from source.accept("{")
        if not opened and not (yield from self._ends(source)):
            raise Malformed("the call has no arguments after its name")
        arguments = ArgumentsWriter(source, name, find_tool(name, tools))
        if opened:
            yield from self._read_arguments(source, arguments)
        arguments.end()
        source.mark()
        yield from source.skip_space()
        yield from source.accept(self.end)

    def _read_arguments(self, source: Source, arguments: ArgumentsWriter) -> Parse[None]:
        """Reads up to the closing brace, which may be missing at the end of the call."""
        while True:
            yield from source.skip_space()
            if (yield from source.accept("}")) or (yield from self._ends(source)):
                return
            yield from self._read_argument(source, arguments)
            yield from source.skip_space()
            comma = yield from source.accept(",")
            if comma is None and (yield from source.peek()) != "}" and not (yield from self._ends(source)):
                raise Malformed("expected a comma or the end of the call after an argument")

    def _ends(self, source: Source) -> Parse[bool]:
        return (yield from source.sees(self.end)) is not None or (yield from source.is_complete())

    def _read_argument(self, source: Source, arguments: ArgumentsWriter) -> Parse[None]:
        dialect = Dialect(self.quote)
        quoted = yield from read_string(source, dialect)
        key = quoted if quoted is not None else (yield from source.word(_KEY))
        yield from source.skip_space()
        yield from source.expect(":")
        yield from source.skip_space()
        arguments.begin(key)
        if (yield from source.accept(self.quote)):
            arguments.add(key, (yield from self._read_text(source, arguments)))
        elif (yield from source.peek()) in ("[", "{", '"', "'"):
            arguments.add(key, (yield from read_value(source, dialect)))
        else:
            arguments.add(key, (yield from self._read_bare(source, arguments)))

    def _read_text(self, source: Source, arguments: ArgumentsWriter) -> Parse[str]:
        """Reads a string after its opening quote. Without a closing quote, it ends before the next known key."""
        parts: list[str] = []
        found = yield from source.until((self.quote, self.end), parts.append)
        text = "".join(parts)
        if found == self.quote and not _ends_with_key(text, arguments):
            return text
        if found is None and source.is_cut_off:
            raise Malformed("the output ended inside a string")
        end = _end_of_value(text, arguments)
        source.put_back(text[end:] + (found if found is not None else ""))
        return text[:end]

    def _read_bare(self, source: Source, arguments: ArgumentsWriter) -> Parse[Any]:
        """Reads an unquoted value, including commas before unknown keys. A closing quote is optional."""
        parts: list[str] = []
        while (found := (yield from source.until((",", "}", self.quote, self.end), parts.append))) == ",":
            space = yield from source.word(_SPACES)
            key = yield from source.word(_KEY)
            space_after = yield from source.word(_SPACES)
            if arguments.expects(key) and (yield from source.peek()) == ":":
                source.put_back(f",{space}{key}{space_after}")
                return word_value("".join(parts), Dialect(self.quote))
            parts.append(f",{space}{key}{space_after}")
        if found is None and source.is_cut_off:
            raise Malformed("the output ended inside a value")
        if found is not None and found != self.quote:
            source.put_back(found)
        return word_value("".join(parts), Dialect(self.quote))


def _ends_with_key(text: str, arguments: ArgumentsWriter) -> bool:
    return any(found.end() == len(text) and arguments.expects(found[1]) for found in _NEXT_KEY.finditer(text))


def _end_of_value(text: str, arguments: ArgumentsWriter) -> int:
    """The end of a value without closing quote: before the next possible key, else before the last brace."""
    keys = (found.start() for found in _NEXT_KEY.finditer(text) if arguments.expects(found[1]))
    bare = text.rstrip()
    return next(keys, len(bare) - bare.endswith("}"))


class ToolCodeCalls:
    """Gemma 3: Python in a code block, or a plain list of calls to known tools."""

    begins = ("```tool_code", "[")
    unmarked = ("[",)
    separators: tuple[str, ...] = ()

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        if begin in self.unmarked:
            yield from read_call_list(source, tuple(tool.name for tool in tools))
            return
        while True:
            yield from source.skip_space()
            if (yield from source.accept("```")) or not (yield from source.available()):
                return
            yield from _read_statement(source)
            source.mark()


def _read_statement(source: Source) -> Parse[None]:
    printed = yield from source.accept("print(")
    if (yield from source.accept("[")):
        yield from read_call_list(source, None)
    else:
        yield from read_python_call(source, None)
    if printed:
        yield from source.skip_space()
        yield from source.accept(")")
