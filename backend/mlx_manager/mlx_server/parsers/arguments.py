"""Writes arguments of non-JSON formats as JSON. Sends each argument when it is complete."""

import json
import re
from typing import Any

from mlx_manager.mlx_server.parsers.pieces import Tool, ToolCallArguments, ToolCallEnd, ToolCallStart
from mlx_manager.mlx_server.parsers.source import Malformed, Source

_KEY = re.compile(r"[-.\w]+")


class ArgumentsWriter:
    """Starts the call; `add` sends an argument, `end` completes the object and the call."""

    def __init__(self, source: Source, name: str, tool: Tool | None = None) -> None:
        if not name:
            raise Malformed("the call has no name")
        self._source = source
        self._properties = tool.parameters.get("properties") if tool is not None else None
        self._begun: set[str] = set()
        self._opened = False
        source.emit(ToolCallStart(name))

    def begin(self, key: str) -> None:
        """Starts the argument `key`; its value follows with `add`."""
        if not key:
            raise Malformed("an argument has no name")
        self._begun.add(key)

    def expects(self, key: str) -> bool:
        """Whether `key` may be the next argument: a known parameter without a value so far."""
        if key in self._begun:
            return False
        return key in self._properties if self._properties else _KEY.fullmatch(key) is not None

    def add(self, key: str, value: Any) -> None:
        member = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        self._source.emit(ToolCallArguments((", " if self._opened else "{") + member))
        self._opened = True

    def end(self) -> None:
        self._source.emit(ToolCallArguments("}" if self._opened else "{}"))
        self._source.emit(ToolCallEnd())
