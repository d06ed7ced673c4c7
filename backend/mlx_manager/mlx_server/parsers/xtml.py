"""Kimi K3: `<|open|>call tool="name"<|sep|>`, typed arguments or a JSON block, `<|close|>call<|sep|>`."""

import json
import re
from typing import Any

from mlx_manager.mlx_server.parsers.arguments import ArgumentsWriter
from mlx_manager.mlx_server.parsers.json_call import copy_arguments
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pieces import ToolCallArguments, ToolCallEnd, ToolCallStart, find_tool
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source

OPEN, CLOSE, SEPARATOR = "<|open|>", "<|close|>", "<|sep|>"
TOOLS, TOOLS_END = f"{OPEN}tools{SEPARATOR}", f"{CLOSE}tools{SEPARATOR}"
_CALL, _CALL_END = f"{OPEN}call", f"{CLOSE}call{SEPARATOR}"
_ARGUMENT, _ARGUMENT_END = f"{OPEN}argument", f"{CLOSE}argument{SEPARATOR}"
_JSON, _JSON_END = f"{OPEN}json", f"{CLOSE}json{SEPARATOR}"
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


class XtmlCalls:
    begins = (TOOLS, _CALL)
    unmarked: tuple[str, ...] = ()
    separators = (TOOLS_END,)

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        if begin == TOOLS:
            yield from source.skip_space()
            yield from source.expect(_CALL)
        while True:
            yield from _read_call(source, tools)
            source.mark()
            yield from source.skip_space()
            if not (yield from source.accept(_CALL)):
                yield from source.accept(TOOLS_END)
                return


def _read_call(source: Source, tools: Tools) -> Parse[None]:
    name = (yield from _read_attributes(source)).get("tool")
    if not name:
        raise Malformed("the call has no name")
    yield from source.skip_space()
    if (yield from source.accept(_JSON)):
        yield from _read_json(source, name)
    else:
        yield from _read_arguments(source, name, tools)


def _read_json(source: Source, name: str) -> Parse[None]:
    yield from _read_attributes(source)
    yield from source.skip_space()
    if (yield from source.peek()) != "{":
        raise Malformed("the arguments are not an object")
    source.emit(ToolCallStart(name))
    yield from copy_arguments(source, lambda text: source.emit(ToolCallArguments(text)))
    source.emit(ToolCallEnd())
    source.mark()
    yield from source.skip_space()
    yield from source.accept(_JSON_END)
    yield from source.skip_space()
    yield from source.accept(_CALL_END)


def _read_arguments(source: Source, name: str, tools: Tools) -> Parse[None]:
    arguments = ArgumentsWriter(source, name, find_tool(name, tools))
    while (yield from source.expect(_ARGUMENT, _CALL_END)) == _ARGUMENT:
        attributes = yield from _read_attributes(source)
        key = attributes.get("key")
        if not key:
            raise Malformed("an argument has no key")
        arguments.begin(key)
        text = yield from source.text_until(_ARGUMENT_END)
        arguments.add(key, _value(text, attributes.get("type", "string")))
        yield from source.skip_space()
    arguments.end()


def _read_attributes(source: Source) -> Parse[dict[str, str]]:
    text = yield from source.text_until(SEPARATOR)
    return {name: value.replace("&quot;", '"').replace("&amp;", "&") for name, value in _ATTRIBUTE.findall(text)}


def _value(text: str, kind: str) -> Any:
    if kind == "string":
        return text
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return text
    return value
