"""Calls with a tag for the function and a tag for each parameter.

Qwen3-Coder and later Qwens: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.
MiniMax, Muse Spark, MiniCPM 5 and DeepSeek V3.2 use other tags and quoted names.
"""

from dataclasses import dataclass

from mlx_manager.mlx_server.parsers.arguments import ArgumentsWriter
from mlx_manager.mlx_server.parsers.json_call import read_call_in_tags
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pieces import find_tool
from mlx_manager.mlx_server.parsers.schema_values import typed_value
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source
from mlx_manager.mlx_server.parsers.tagged_value import ValueTags, read_key, read_tagged_value

_CDATA, _CDATA_END = "<![CDATA[", "]]>"


@dataclass(frozen=True, slots=True)
class FunctionCalls:
    """`call`: the tag around one or more functions, or "". Models often omit it, so calls may begin with either tag."""

    function: str
    function_end: str
    parameter: str
    parameter_ends: tuple[str, ...]
    call: str = ""
    call_end: str = ""

    @property
    def begins(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.call, self.function)))

    @property
    def unmarked(self) -> tuple[str, ...]:
        return ()

    @property
    def separators(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.call_end,)))

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        if begin != self.function:
            yield from source.skip_space()
            if (yield from source.peek()) == "{":
                yield from read_call_in_tags(source, self.call_end)
                return
            yield from source.expect(self.function)
        yield from self._read_function(source, tools)
        source.mark()
        yield from source.skip_space()
        yield from source.accept(*self.separators)

    def _read_function(self, source: Source, tools: Tools) -> Parse[None]:
        name = yield from read_key(source)
        yield from source.accept(">")
        tool = find_tool(name, tools)
        arguments = ArgumentsWriter(source, name, tool)
        ends = (self.function_end, *self.separators)
        tags = ValueTags(self.parameter_ends, self.parameter, ">", ends, self.begins)
        yield from source.skip_space()
        tag, key = (yield from source.accept(self.parameter, *ends)), ""
        if tag is None and not (yield from source.is_complete()):
            raise Malformed("expected a parameter or the end of the call after the name")
        while tag == self.parameter:
            key = key if key else (yield from read_key(source))
            yield from source.accept(">")
            arguments.begin(key)
            value = yield from read_tagged_value(source, tags, arguments)
            arguments.add(key, typed_value(_content(value.text), tool, key))
            tag, key = value.tag, value.key
        arguments.end()


def _content(value: str) -> str:
    stripped = value.strip()
    if stripped.startswith(_CDATA) and stripped.endswith(_CDATA_END):
        return stripped.removeprefix(_CDATA).removesuffix(_CDATA_END)
    return value.removeprefix("\n").removesuffix("\n")


QWEN_CODER_CALLS = FunctionCalls(
    "<function=", "</function>", "<parameter=", ("</parameter>", "</parameter/>"), "<tool_call>", "</tool_call>"
)
MINIMAX_CALLS = FunctionCalls(
    "<invoke name=", "</invoke>", "<parameter name=", ("</parameter>",), "<minimax:tool_call>", "</minimax:tool_call>"
)
MUSE_CALLS = FunctionCalls(
    "<atem:invoke name=",
    "</atem:invoke>",
    "<atem:parameter name=",
    ("</atem:parameter>",),
    "<atem:function_calls>",
    "</atem:function_calls>",
)
MINICPM_CALLS = FunctionCalls("<function name=", "</function>", "<param name=", ("</param>",))
DSML_CALLS = FunctionCalls(
    "<｜DSML｜invoke name=",
    "</｜DSML｜invoke>",
    "<｜DSML｜parameter name=",
    ("</｜DSML｜parameter>",),
    "<｜DSML｜function_calls>",
    "</｜DSML｜function_calls>",
)
