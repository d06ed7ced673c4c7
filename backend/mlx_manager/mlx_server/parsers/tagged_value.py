"""Reads an argument's value between tags. Models omit tags, and values may contain tag-like text.

The whole value is read before it is sent; the text after a tag shows whether the tag is real or part of the value.
"""

import re
from dataclasses import dataclass

from mlx_manager.mlx_server.parsers.arguments import ArgumentsWriter
from mlx_manager.mlx_server.parsers.source import SPACE, Malformed, Parse, Source

_SPACES = re.compile(f"[{SPACE}]+")
_KEY = re.compile(r"[^<>\n]+")
_QUOTED = re.compile(r"""\s*(["'])(.*?)\1""")


@dataclass(frozen=True, slots=True)
class ValueTags:
    """`closing` ends a value, `following` begins the next key and `key_end` ends it, `ending` ends a call and
    `beginning` begins a call.
    """

    closing: tuple[str, ...]
    following: str
    key_end: str
    ending: tuple[str, ...]
    beginning: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.closing, self.following, *self.ending, *self.beginning)


@dataclass(frozen=True, slots=True)
class Value:
    """`tag`: the consumed tag after the value, `key`: the key that it begins. None if the call ends without a tag."""

    text: str
    tag: str | None
    key: str = ""


def read_key(source: Source) -> Parse[str]:
    return _bare((yield from source.word(_KEY)))


def read_tagged_value(source: Source, tags: ValueTags, arguments: ArgumentsWriter) -> Parse[Value]:
    """The value of the argument that was begun last.

    A closing tag counts only before another tag or the end of the output. Without a closing tag, the value ends before
    the next known key or at the end of the call. Raises Malformed if the output is cut off earlier.
    """
    text = ""
    first_end: tuple[Value, int] | None = None  # possible end of the value, and the place in `text` after it
    while True:
        before: list[str] = []
        found = yield from source.until(tags.all, before.append)
        value = text + "".join(before)
        if found is None:
            text = value
            break
        text = value + found
        if found in tags.beginning and first_end is not None:
            break
        if found == tags.following:
            key = yield from source.word(_KEY)
            if arguments.expects(_bare(key)) and _may_end(value):
                return Value(value, found, _bare(key))
            text += key
        elif found not in tags.beginning:
            space = yield from source.word(_SPACES)
            ended = yield from _ended(source, tags, arguments, Value(value, found))
            if ended is not None:
                return ended
            if first_end is None:
                first_end = Value(value, None if found in tags.closing else found), len(text)
            text += space
    if first_end is None or source.is_cut_off:
        raise Malformed("the output ended inside an argument")
    source.put_back(text[first_end[1] :])
    return first_end[0]


def _ended(source: Source, tags: ValueTags, arguments: ArgumentsWriter, value: Value) -> Parse[Value | None]:
    """The value if the next text confirms that its tag is a real one; else None."""
    if value.tag in tags.ending:
        followed = (yield from source.sees(*tags.beginning, *tags.ending)) is not None
        return value if followed or (yield from source.is_complete()) else None
    tag = yield from source.accept(tags.following, *tags.ending)
    if tag is not None:
        return Value(value.text, tag, (yield from read_key(source)) if tag == tags.following else "")
    if (yield from source.is_complete()):
        return Value(value.text, None)
    key = yield from source.word(_KEY)
    if arguments.expects(_bare(key)) and (yield from source.sees(tags.key_end)):
        return Value(value.text, tags.following, _bare(key))  # the model omitted the tag before the key
    source.put_back(key)
    return None


def _may_end(value: str) -> bool:
    """A value that begins with a newline must end with one."""
    return not value.startswith("\n") or value.rstrip(" \t").endswith("\n")


def _bare(key: str) -> str:
    """The key without quotes and without attributes after a quoted key."""
    quoted = _QUOTED.match(key)
    return quoted[2] if quoted is not None else key.strip(" \t\r\"'")
