"""Qwen3-Coder and later Qwens: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`."""

from mlx_manager.mlx_server.parsers.arguments import ArgumentsWriter
from mlx_manager.mlx_server.parsers.json_call import read_call_in_tags
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pieces import find_tool
from mlx_manager.mlx_server.parsers.schema_values import typed_value
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source
from mlx_manager.mlx_server.parsers.tagged_value import ValueTags, read_key, read_tagged_value

FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER = "<parameter="
CALL, CALL_END = "<tool_call>", "</tool_call>"
_TAGS = ValueTags(("</parameter>", "</parameter/>"), PARAMETER, ">", (FUNCTION_END, CALL_END), (CALL, FUNCTION))


class QwenCoderCalls:
    """The outer tag is often forgotten, so a call may begin with either."""

    begins = (CALL, FUNCTION)
    unmarked: tuple[str, ...] = ()
    separators = (CALL_END,)

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        if begin != FUNCTION:
            yield from source.skip_space()
            if (yield from source.peek()) == "{":
                yield from read_call_in_tags(source, CALL_END)
                return
            yield from source.expect(FUNCTION)
        yield from _read_function(source, tools)
        source.mark()
        yield from source.skip_space()
        yield from source.accept(CALL_END)


def _read_function(source: Source, tools: Tools) -> Parse[None]:
    name = yield from read_key(source)
    yield from source.accept(">")
    tool = find_tool(name, tools)
    arguments = ArgumentsWriter(source, name, tool)
    yield from source.skip_space()
    tag, key = (yield from source.accept(PARAMETER, FUNCTION_END, CALL_END)), ""
    if tag is None and not (yield from source.is_complete()):
        raise Malformed("neither a parameter nor the end of the call follows its name")
    while tag == PARAMETER:
        key = key if key else (yield from read_key(source))
        yield from source.accept(">")
        arguments.begin(key)
        value = yield from read_tagged_value(source, _TAGS, arguments)
        arguments.add(key, typed_value(value.text.removeprefix("\n").removesuffix("\n"), tool, key))
        tag, key = value.tag, value.key
    arguments.end()
