"""JSON texts that cost much: a thread for the large ones, and bounds that are checked before a parser makes objects.

Parsing takes time by the value, not by the byte: 32 MiB of `[],[],[]` hold the event loop for seconds and fill
gigabytes, 32 MiB of prose are read in 30 ms. All that is done here is a pass over the bytes in C.
"""

import asyncio
from collections.abc import Callable
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")
SMALL_BYTES = 100_000
"""What is made of so much JSON takes a few milliseconds."""
MAX_VALUES = 1_200_000
"""Commas: a prompt of a million token ids, and some more, so that the prompt's own limit is what names the field."""
MAX_STRINGS = 500_000
"""Keys of objects among them."""
MAX_KEYS = 250_000
"""They take a parser the longest: a third of a second for half a million."""
MAX_CONTAINERS = 200_000
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEPS = bytes(2 if byte in b"[{" else 0 for byte in range(256))


async def off_loop(size_bytes: int, work: Callable[..., T], *arguments: object) -> T:
    """What `work` makes of a JSON text of that size: in a thread, unless it is small."""
    if size_bytes <= SMALL_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def fault_of_json(text: bytes, max_depth: int) -> str | None:
    """What is too much about it, or that it is none; None when a parser may have it.

    In a text that is no JSON from some place on, what is counted behind that place means nothing; no parser gets there.
    """
    if b"\0" in text:  # also in every UTF-16 and UTF-32, which Python's parser would take
        return "The body has a NUL byte in it: send JSON in UTF-8."
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in text else text
    if unescaped.count(b'"') > 2 * MAX_STRINGS:
        return f"The body has more than {MAX_STRINGS:,} strings in it: send less."
    structure = b"".join(unescaped.split(b'"')[::2])
    if structure.count(b",") > MAX_VALUES:
        return f"The body has more than {MAX_VALUES:,} values in it: send less."
    if structure.count(b":") > MAX_KEYS:
        return f"The body has more than {MAX_KEYS:,} keys of objects in it: send less."
    opened = structure.count(b"[") + structure.count(b"{")
    if opened > MAX_CONTAINERS:
        return f"The body has more than {MAX_CONTAINERS:,} lists and objects in it: send less."
    if opened > max_depth and _depth(structure) > max_depth:
        return f"The body is nested more than {max_depth} deep: flatten it, or raise MLX_SERVER_MAX_JSON_DEPTH."
    return None


def _depth(structure: bytes) -> int:
    steps = structure.translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(steps, lambda depth, step: depth + step - 1, initial=0))
