"""Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or since 2025 `[TOOL_CALLS]name[ARGS]{...}`."""

import re

from mlx_manager.mlx_server.parsers.json_call import copy_arguments, read_call, read_calls
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pieces import ToolCallArguments, ToolCallEnd, ToolCallStart
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source

_NAME = re.compile(r"[-.:/\w]+")


class MistralCalls:
    begins = ("[TOOL_CALLS]",)
    unmarked: tuple[str, ...] = ()
    separators: tuple[str, ...] = ()

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        yield from source.skip_space()
        if (yield from source.accept("[")):
            yield from read_calls(source)
        elif (yield from source.accept("{")):
            yield from read_call(source)
        else:
            yield from _read_named(source)


def _read_named(source: Source) -> Parse[None]:
    name = yield from source.word(_NAME)
    yield from source.skip_space()
    if (yield from source.accept("[CALL_ID]")):
        yield from source.word(_NAME)
    yield from source.accept("[ARGS]")
    yield from source.skip_space()
    if not name or (yield from source.peek()) != "{":
        raise Malformed("the call has no name or no arguments")
    source.emit(ToolCallStart(name))
    yield from copy_arguments(source, lambda text: source.emit(ToolCallArguments(text)))
    source.emit(ToolCallEnd())
