"""Encodes stream frames that differ only in one text: the rest is encoded once. Pure."""

import uuid
from collections.abc import Callable

import msgspec

_MARK = uuid.uuid4().hex
"""The placeholder of the text; it occurs nowhere else in a frame."""


class TextFrame:
    """`write` returns the frame for a text, inserted as a JSON string in one or more places."""

    def __init__(self, write: Callable[[str], bytes]) -> None:
        self._around = write(_MARK).split(msgspec.json.encode(_MARK))

    def __call__(self, text: str) -> bytes:
        return msgspec.json.encode(text).join(self._around)
