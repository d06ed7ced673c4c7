"""GLM 4: `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`.

LongCat adds a prefix to each tag.
"""

import re
from dataclasses import dataclass

from mlx_manager.mlx_server.parsers.arguments import ArgumentsWriter
from mlx_manager.mlx_server.parsers.json_call import read_call_in_tags
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pieces import find_tool
from mlx_manager.mlx_server.parsers.schema_values import typed_value
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source
from mlx_manager.mlx_server.parsers.tagged_value import ValueTags, read_key, read_tagged_value

_NAME = re.compile(r"[-.:/\w]+")


@dataclass(frozen=True, slots=True)
class GlmCalls:
    """`prefix` precedes the name of each tag."""

    prefix: str = ""

    @property
    def begins(self) -> tuple[str, ...]:
        return (f"<{self.prefix}tool_call>",)

    @property
    def unmarked(self) -> tuple[str, ...]:
        return ()

    @property
    def separators(self) -> tuple[str, ...]:
        return ()

    @property
    def tags(self) -> frozenset[str]:
        names = ("tool_call", "arg_key", "arg_value")
        return frozenset(f"<{slash}{self.prefix}{name}>" for name in names for slash in ("", "/"))

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        key_tag, end = f"<{self.prefix}arg_key>", f"</{self.prefix}tool_call>"
        tags = ValueTags((f"</{self.prefix}arg_value>",), key_tag, f"</{self.prefix}arg_key>", (end,), self.begins)
        yield from source.skip_space()
        if (yield from source.peek()) == "{":
            yield from read_call_in_tags(source, end)
            return
        name = yield from source.word(_NAME)
        yield from source.skip_space()
        tag, key = (yield from source.accept(key_tag, end)), ""
        if tag is None and not (yield from source.is_complete()):
            raise Malformed("expected a key or the end of the call after the name")
        tool = find_tool(name, tools)
        arguments = ArgumentsWriter(source, name, tool)
        while tag == key_tag:
            key = key if key else (yield from read_key(source))
            yield from _skip_to_value(source, tags.key_end, f"<{self.prefix}arg_value>")
            arguments.begin(key)
            value = yield from read_tagged_value(source, tags, arguments)
            arguments.add(key, typed_value(value.text, tool, key))
            tag, key = value.tag, value.key
        arguments.end()


def _skip_to_value(source: Source, key_end: str, value: str) -> Parse[None]:
    """Reads the tags between a key and its value; one of the two may be missing."""
    yield from source.skip_space()
    closed = yield from source.accept(key_end)
    yield from source.skip_space()
    if (yield from source.accept(value)) is None and closed is None:
        raise Malformed("expected a value after a key")
