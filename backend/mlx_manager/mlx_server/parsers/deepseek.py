"""DeepSeek V3, R1 and V3.1, and Kimi K2: calls between special tokens, arguments as plain or fenced JSON."""

import re
from dataclasses import dataclass

from mlx_manager.mlx_server.parsers.json_call import copy_arguments
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pieces import ToolCallArguments, ToolCallEnd, ToolCallStart
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source

_NAME = re.compile(r"[-.:/\w]+")
_NUMBERED = re.compile(r"(?:functions\.)?(.+?):\d+")
"""Kimi appends the index of the call to the name."""


@dataclass(frozen=True, slots=True)
class DeepSeekCalls:
    calls_begin: str
    calls_end: str
    call_begin: str
    call_end: str
    separator: str

    @property
    def begins(self) -> tuple[str, ...]:
        return (self.calls_begin, self.call_begin)

    @property
    def unmarked(self) -> tuple[str, ...]:
        return ()

    @property
    def separators(self) -> tuple[str, ...]:
        return (self.calls_end,)

    @property
    def tokens(self) -> frozenset[str]:
        return frozenset({self.calls_begin, self.calls_end, self.call_begin, self.call_end, self.separator})

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        if begin == self.calls_begin:
            yield from source.skip_space()
            yield from source.accept(self.call_begin)
        while True:
            yield from self._read_call(source, tools)
            source.mark()
            yield from source.skip_space()
            if not (yield from source.accept(self.call_begin)):
                yield from source.accept(self.calls_end)
                return

    def _read_call(self, source: Source, tools: Tools) -> Parse[None]:
        yield from source.skip_space()
        name = yield from source.word(_NAME)
        yield from source.skip_space()
        if (yield from source.accept(self.separator)):
            yield from source.skip_space()
            other = yield from source.word(_NAME)  # V3 and R1 write the tool type "function" before the separator
            name = other if other else name
            yield from source.skip_space()
        yield from source.accept("```json", "```")
        yield from source.skip_space()
        if not name or (yield from source.peek()) != "{":
            raise Malformed("the call has no name or no arguments")
        source.emit(ToolCallStart(_without_number(name, tools)))
        yield from copy_arguments(source, lambda text: source.emit(ToolCallArguments(text)))
        source.emit(ToolCallEnd())
        source.mark()
        yield from source.skip_space()
        yield from source.accept("```")
        yield from source.skip_space()
        yield from source.accept(self.call_end)


def _without_number(name: str, tools: Tools) -> str:
    numbered = _NUMBERED.fullmatch(name)
    return name if numbered is None or any(tool.name == name for tool in tools) else numbered[1]


DEEPSEEK_CALLS = DeepSeekCalls(
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
KIMI_K2_CALLS = DeepSeekCalls(
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_end|>",
    "<|tool_call_argument_begin|>",
)
