"""Reads values in the syntax of Python or Gemma incrementally, and returns them complete."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_manager.mlx_server.parsers.json_text import MAX_DEPTH
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source

_WORD = re.compile(r"[-+.\w]+")
_BARE = re.compile(r"[^,:\[\]{}<]+")
_KEY = re.compile(r"[^\s,:\[\]{}<]+")
_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": "", **{mark: mark for mark in "\\'\"/"}}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_IS_HEX = re.compile(r"[0-9a-fA-F]")
_CLOSING = {"[": "]", "(": ")"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """`quote`: an extra delimiter of raw strings. If it is set, unquoted words are strings too."""

    quote: str | None = None


PYTHON = Dialect()


def read_value(source: Source, dialect: Dialect, depth: int = 0) -> Parse[Any]:
    if depth > MAX_DEPTH:
        raise Malformed(f"a value is nested deeper than {MAX_DEPTH} levels")
    yield from source.skip_space()
    opened = yield from source.accept("[", "(", "{")
    if opened == "{":
        return dict((yield from read_items(source, "}", lambda: _read_pair(source, dialect, depth + 1))))
    if opened is not None:
        return (yield from read_items(source, _CLOSING[opened], lambda: read_value(source, dialect, depth + 1)))
    text = yield from read_string(source, dialect)
    return text if text is not None else (yield from _read_word(source, dialect))


def read_items(source: Source, close: str, read_item: Callable[[], Parse[Any]]) -> Parse[list[Any]]:
    """Reads items up to `close`, separated by commas; a trailing comma is accepted."""
    items: list[Any] = []
    while True:
        yield from source.skip_space()
        if (yield from source.accept(close)):
            return items
        items.append((yield from read_item()))
        yield from source.skip_space()
        if (yield from source.expect(",", close)) == close:
            return items


def _read_pair(source: Source, dialect: Dialect, depth: int) -> Parse[tuple[str, Any]]:
    key = yield from read_string(source, dialect)
    if key is None and dialect.quote is not None:
        key = yield from source.word(_KEY)
    if key is None:
        raise Malformed("a key is not a string")
    yield from source.skip_space()
    yield from source.expect(":")
    return key, (yield from read_value(source, dialect, depth))


def read_string(source: Source, dialect: Dialect) -> Parse[str | None]:
    """Reads a string; None if the next text is not a string."""
    if dialect.quote is not None and (yield from source.accept(dialect.quote)):
        return (yield from source.text_until(dialect.quote))
    quote = yield from source.accept("'''", '"""', "'", '"')
    if quote is None:
        return None
    parts: list[str] = []
    while (found := (yield from source.until((quote, "\\"), parts.append))) == "\\":
        parts.append((yield from _read_escape(source)))
    if found is None:
        raise Malformed("the output ended inside a string")
    return _with_surrogates_paired("".join(parts))


def _read_escape(source: Source) -> Parse[str]:
    if not (yield from source.available()):
        raise Malformed("the output ended inside a string")
    mark = source.take(1)
    if mark not in _HEX_DIGITS:
        return _ESCAPES.get(mark, "\\" + mark)
    digits = ""
    for _ in range(_HEX_DIGITS[mark]):
        if not _IS_HEX.match((yield from source.peek())):
            raise Malformed(f"a string has an invalid \\{mark} escape")
        digits += source.take(1)
    if int(digits, 16) > 0x10FFFF:
        raise Malformed("a string has an escape beyond Unicode")
    return chr(int(digits, 16))


def _with_surrogates_paired(text: str) -> str:
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise Malformed("a string has a lone surrogate") from None


def _read_word(source: Source, dialect: Dialect) -> Parse[Any]:
    return word_value((yield from source.word(_WORD if dialect.quote is None else _BARE)), dialect)


def word_value(word: str, dialect: Dialect) -> Any:
    word = word.strip()
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if _INTEGER.fullmatch(word):
        return int(word)
    if _NUMBER.fullmatch(word) and math.isfinite(number := float(word)):
        return number
    if dialect.quote is None or not word:
        raise Malformed("expected a value")
    return word
