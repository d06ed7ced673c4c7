"""Frames of a stream that differ in one text alone: what stands around the text is encoded once. Pure."""

import uuid
from collections.abc import Callable

import msgspec

_MARK = uuid.uuid4().hex
"""Stands for the text; nothing else in a frame can be the same."""


class TextFrame:
    """`write` gives the frame of any text, which has the text as a JSON string, once or more often."""

    def __init__(self, write: Callable[[str], bytes]) -> None:
        self._around = write(_MARK).split(msgspec.json.encode(_MARK))

    def __call__(self, text: str) -> bytes:
        return msgspec.json.encode(text).join(self._around)
