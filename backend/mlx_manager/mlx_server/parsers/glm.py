"""GLM 4: `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`."""

import re

from mlx_manager.mlx_server.parsers.arguments import ArgumentsWriter
from mlx_manager.mlx_server.parsers.json_call import read_call_in_tags
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pieces import find_tool
from mlx_manager.mlx_server.parsers.schema_values import typed_value
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source
from mlx_manager.mlx_server.parsers.tagged_value import ValueTags, read_key, read_tagged_value

CALL, CALL_END = "<tool_call>", "</tool_call>"
KEY, KEY_END, VALUE = "<arg_key>", "</arg_key>", "<arg_value>"
_NAME = re.compile(r"[-.:/\w]+")
_TAGS = ValueTags(("</arg_value>",), KEY, KEY_END, (CALL_END,), (CALL,))


class GlmCalls:
    begins = (CALL,)
    unmarked: tuple[str, ...] = ()
    separators: tuple[str, ...] = ()

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        yield from source.skip_space()
        if (yield from source.peek()) == "{":
            yield from read_call_in_tags(source, CALL_END)
            return
        name = yield from source.word(_NAME)
        yield from source.skip_space()
        tag, key = (yield from source.accept(KEY, CALL_END)), ""
        if tag is None and not (yield from source.is_complete()):
            raise Malformed("neither a key nor the end of the call follows its name")
        tool = find_tool(name, tools)
        arguments = ArgumentsWriter(source, name, tool)
        while tag == KEY:
            key = key if key else (yield from read_key(source))
            yield from _skip_to_value(source)
            arguments.begin(key)
            value = yield from read_tagged_value(source, _TAGS, arguments)
            arguments.add(key, typed_value(value.text, tool, key))
            tag, key = value.tag, value.key
        arguments.end()


def _skip_to_value(source: Source) -> Parse[None]:
    """One of the two tags between a key and its value may be missing."""
    yield from source.skip_space()
    closed = yield from source.accept(KEY_END)
    yield from source.skip_space()
    if (yield from source.accept(VALUE)) is None and closed is None:
        raise Malformed("no value follows a key")
