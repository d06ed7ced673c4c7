"""Checks JSON incrementally and writes it as strict JSON without delay.

Accepts unambiguous deviations of models: control characters in strings, single quotes, unquoted keys, Python's
constants, and a trailing comma.
"""

import json
import re

from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Sink, Source

MAX_DEPTH = 100

_PLAIN = {'"': re.compile(r'[^"\\\x00-\x1f]+'), "'": re.compile(r"[^'\"\\\x00-\x1f]+")}
_NAME = re.compile(r"[-\w]+")
_BARE_KEY = re.compile(r"[A-Za-z_][-\w]*")
_SCALAR = re.compile(r"[-+.0-9A-Za-z]+")
_IS_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null")
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_HEX = re.compile(r"[0-9a-fA-F]")
_SPACES = re.compile(r"[ \t\r\n]+")


def copy_value(source: Source, sink: Sink, depth: int = 0) -> Parse[None]:
    """Writes one JSON value as its text arrives. Raises Malformed at the first invalid character."""
    if depth > MAX_DEPTH:
        raise Malformed(f"JSON is nested deeper than {MAX_DEPTH} levels")
    match (yield from source.peek()):
        case "{":
            yield from _copy_items(source, sink, depth, "}")
        case "[":
            yield from _copy_items(source, sink, depth, "]")
        case '"' | "'":
            yield from copy_string(source, sink)
        case _:
            scalar = yield from source.word(_SCALAR)
            scalar = _CONSTANTS.get(scalar, scalar)
            if not _IS_SCALAR.fullmatch(scalar):
                raise Malformed("expected a JSON value")
            sink(scalar)


def copy_string(source: Source, sink: Sink) -> Parse[None]:
    quote = yield from source.expect('"', "'")
    sink('"')
    while True:
        yield from source.run(_PLAIN[quote], sink)
        character = yield from source.peek()
        if character == quote:
            source.take(1)
            sink('"')
            return
        if character == "\\":
            sink((yield from _escape(source)))
        elif character:
            sink(json.dumps(source.take(1))[1:-1])
        else:
            raise Malformed("the output ended inside a JSON string")


def read_string(source: Source) -> Parse[str]:
    parts: list[str] = []
    yield from copy_string(source, parts.append)
    text: str = json.loads("".join(parts))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Malformed("a JSON string has a lone surrogate") from None
    return text


def _copy_items(source: Source, sink: Sink, depth: int, close: str) -> Parse[None]:
    sink(source.take(1))
    separator = ""
    while True:
        space = yield from source.word(_SPACES)
        if (yield from source.accept(close)):
            sink(space + close)
            return
        sink(separator + space)
        if close == "}":
            yield from _copy_key(source, sink)
            yield from source.run(_SPACES, sink)
            sink((yield from source.expect(":")))
            yield from source.run(_SPACES, sink)
        yield from copy_value(source, sink, depth + 1)
        yield from source.run(_SPACES, sink)
        separator = yield from source.expect(",", close)
        if separator == close:
            sink(close)
            return


def _copy_key(source: Source, sink: Sink) -> Parse[None]:
    if (yield from source.peek()) in ('"', "'"):
        yield from copy_string(source, sink)
        return
    key = yield from source.word(_NAME)
    if not _BARE_KEY.fullmatch(key):
        raise Malformed("expected a key in JSON")
    sink(json.dumps(key))


def _escape(source: Source) -> Parse[str]:
    escape = source.take(1) + (yield from source.expect(*"\"'\\/bfnrtu"))
    if escape == "\\'":
        return "'"
    if escape == "\\u":
        for _ in range(4):
            if not _HEX.match((yield from source.peek())):
                raise Malformed("a JSON string has an invalid \\u escape")
            escape += source.take(1)
    return escape
