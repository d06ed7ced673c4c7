"""DeepSeek V3, R1 and V3.1: calls between tokens, the arguments in a block of JSON or bare."""

import re

from mlx_manager.mlx_server.parsers.json_call import copy_arguments
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pieces import ToolCallArguments, ToolCallEnd, ToolCallStart
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
_NAME = re.compile(r"[-.:/\w]+")


class DeepSeekCalls:
    begins = (CALLS_BEGIN, CALL_BEGIN)
    unmarked: tuple[str, ...] = ()
    separators = (CALLS_END,)

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        if begin == CALLS_BEGIN:
            yield from source.skip_space()
            yield from source.accept(CALL_BEGIN)
        while True:
            yield from _read_call(source)
            source.mark()
            yield from source.skip_space()
            if not (yield from source.accept(CALL_BEGIN)):
                yield from source.accept(CALLS_END)
                return


def _read_call(source: Source) -> Parse[None]:
    yield from source.skip_space()
    name = yield from source.word(_NAME)
    yield from source.skip_space()
    if (yield from source.accept(SEPARATOR)):
        yield from source.skip_space()
        other = yield from source.word(_NAME)  # V3 and R1 have the kind of the tool, "function", before the separator
        name = other if other else name
        yield from source.skip_space()
    yield from source.accept("```json", "```")
    yield from source.skip_space()
    if not name or (yield from source.peek()) != "{":
        raise Malformed("the call has no name, or no arguments")
    source.emit(ToolCallStart(name))
    yield from copy_arguments(source, lambda text: source.emit(ToolCallArguments(text)))
    source.emit(ToolCallEnd())
    source.mark()
    yield from source.skip_space()
    yield from source.accept("```")
    yield from source.skip_space()
    yield from source.accept(CALL_END)
