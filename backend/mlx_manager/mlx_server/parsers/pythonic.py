"""Calls in Python syntax: `[name(key=value), ...]`. For Llama 4, LFM2 and Gemma 3."""

import re

from mlx_manager.mlx_server.parsers.arguments import ArgumentsWriter
from mlx_manager.mlx_server.parsers.loose_values import PYTHON, read_items, read_value
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source

_NAME = re.compile(r"[-.:/\w]+")
_KEY = re.compile(r"[-.\w]+")

NameChoice = tuple[str, ...] | None
"""The valid names of calls; None (any name) after a marker."""


def read_call_list(source: Source, names: NameChoice) -> Parse[None]:
    """Reads calls in a list after its "[". Keeps the calls before a malformed one."""
    while True:
        yield from source.skip_space()
        yield from read_python_call(source, names)
        source.mark()
        yield from source.skip_space()
        if not (yield from source.available()) or (yield from source.expect(",", "]")) == "]":
            return


def read_python_call(source: Source, names: NameChoice) -> Parse[None]:
    name = (yield from source.word(_NAME)) if names is None else (yield from source.expect(*names))
    yield from source.expect("(")
    if not name:
        raise Malformed("the call has no name")
    arguments = ArgumentsWriter(source, name)
    yield from read_items(source, ")", lambda: _read_argument(source, arguments))
    arguments.end()


def _read_argument(source: Source, arguments: ArgumentsWriter) -> Parse[None]:
    key = yield from source.word(_KEY)
    yield from source.skip_space()
    yield from source.expect("=")
    arguments.add(key, (yield from read_value(source, PYTHON)))


class BracketedPythonicCalls:
    """Calls between markers, as LFM2 writes them."""

    begins = ("<|tool_call_start|>",)
    unmarked: tuple[str, ...] = ()
    separators: tuple[str, ...] = ()

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        yield from source.skip_space()
        yield from source.expect("[")
        yield from read_call_list(source, None)
        yield from source.skip_space()
        yield from source.accept("<|tool_call_end|>")
