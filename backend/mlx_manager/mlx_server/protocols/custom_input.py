"""Extracts the text for a custom tool from the JSON arguments of a function call. Pure."""

import json
import re

from mlx_manager.mlx_server.types import CUSTOM_INPUT

_BEGIN = re.compile(rf'\s*\{{\s*"{CUSTOM_INPUT}"\s*:\s*"')
_STRING_END = re.compile(r'(?:[^"\\]|\\.)*?(")', re.DOTALL)
_BROKEN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?$|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?$")
"""An incomplete escape, or the first half of a surrogate pair."""


class CustomInput:
    """`feed` returns the text received so far. Arguments of another form are returned unchanged at the end."""

    def __init__(self) -> None:
        self._unread = ""
        self._is_inside = False
        self._has_ended = False

    @property
    def is_whole(self) -> bool:
        return self._has_ended

    def feed(self, arguments: str) -> str:
        if self._has_ended:
            return ""
        self._unread += arguments
        if not self._is_inside:
            found = _BEGIN.match(self._unread)
            if found is None:
                return ""
            self._is_inside = True
            self._unread = self._unread[found.end() :]
        return self._read()

    def finish(self) -> str:
        """The remaining text at the end of the call."""
        if self._has_ended or self._is_inside:
            return ""
        self._has_ended = True
        return _text_in(self._unread)

    def _read(self) -> str:
        end = _STRING_END.match(self._unread)
        if end is not None:
            self._has_ended = True
            return _unescaped(self._unread[: end.start(1)])
        broken = _BROKEN_ESCAPE.search(self._unread)
        ready = broken.start() if broken is not None and not _is_escaped(self._unread, broken.start()) else None
        text, self._unread = self._unread[:ready], self._unread[ready:] if ready is not None else ""
        return _unescaped(text)


def custom_input(arguments: str) -> str:
    reader = CustomInput()
    return reader.feed(arguments) + reader.finish()


def _is_escaped(text: str, place: int) -> bool:
    """Whether the backslash at `place` is the second character of an escape."""
    before = text[:place]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _unescaped(text: str) -> str:
    try:
        decoded: str = json.loads(f'"{text}"', strict=False)
    except ValueError:
        return text
    return decoded.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text_in(arguments: str) -> str:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if isinstance(value, dict):
        value = value.get(CUSTOM_INPUT, next(iter(value.values()), "") if len(value) == 1 else arguments)
    return value if isinstance(value, str) else arguments
