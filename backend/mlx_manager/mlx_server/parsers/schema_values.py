"""Converts values of untyped formats by the tool's schema: "5" becomes 5 if a number is expected."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from mlx_manager.mlx_server.parsers.loose_values import PYTHON, read_value
from mlx_manager.mlx_server.parsers.pieces import JsonSchema, Tool
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,4000})(\.0+)?")
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_NOTHING = object()


def typed_value(text: str, tool: Tool | None, key: str) -> Any:
    """The value of the argument `key`; the text itself if a string is expected or no other type fits."""
    types = set(schema_types(argument_schema(tool, key), tool.parameters if tool is not None else {}))
    for kind in _READERS if not types else [kind for kind in _READERS if kind in types]:
        if (value := _READERS[kind](text.strip())) is not _NOTHING:
            return value
    return text


def argument_schema(tool: Tool | None, key: str) -> JsonSchema:
    properties = tool.parameters.get("properties") if tool is not None else None
    schema = properties.get(key) if isinstance(properties, dict) else None
    return schema if isinstance(schema, dict) else {}


def resolve(schema: JsonSchema, root: JsonSchema) -> JsonSchema:
    """`schema`, or the target of its `$ref` in `root`; {} if the target does not exist."""
    seen: set[str] = set()
    while isinstance(ref := schema.get("$ref"), str) and ref not in seen:
        seen.add(ref)
        target: Any = root
        for part in ref.removeprefix("#").strip("/").split("/"):
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
        schema = target if isinstance(target, dict) else {}
    return schema


def schema_types(schema: JsonSchema, root: JsonSchema, depth: int = 0) -> Iterator[str]:
    schema = resolve(schema, root)
    declared = schema.get("type")
    yield from [declared] if isinstance(declared, str) else declared if isinstance(declared, list) else []
    if declared is None:
        constants = [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])]
        yield from (_TYPE_NAMES[type(constant)] for constant in constants if type(constant) in _TYPE_NAMES)
    if depth < 8:
        for keyword in ("anyOf", "oneOf", "allOf"):
            for option in schema.get(keyword, []):
                yield from schema_types(option, root, depth + 1)


def _integer(text: str) -> Any:
    return int(text.partition(".")[0]) if _INTEGER.fullmatch(text) else _NOTHING


def _number(text: str) -> Any:
    value = _json(text)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else _NOTHING


def _constant(*names: str) -> Callable[[str], Any]:
    return lambda text: _CONSTANTS[text.lower()] if text.lower() in names else _NOTHING


def _container(opening: str) -> Callable[[str], Any]:
    return lambda text: _json_or_python(text) if text.startswith(opening) else _NOTHING


def _json(text: str) -> Any:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return _NOTHING
    return value


def _json_or_python(text: str) -> Any:
    """Also reads Python syntax, which some templates show and models then write."""
    value = _json(text)
    if value is not _NOTHING:
        return value
    source = Source()
    source.feed(text)
    source.ended = True
    try:
        return _run(_whole_value(source))
    except Malformed:
        return _NOTHING


def _whole_value(source: Source) -> Parse[Any]:
    value = yield from read_value(source, PYTHON)
    if (yield from source.available()):
        raise Malformed("text follows the value")
    return value


def _run(parse: Parse[Any]) -> Any:
    """Runs a parse whose source has ended, and returns its result."""
    try:
        next(parse)
    except StopIteration as done:
        return done.value
    raise AssertionError("a parse waited for text after the end")


_READERS: dict[str, Callable[[str], Any]] = {
    "null": _constant("null", "none"),
    "boolean": _constant("true", "false"),
    "integer": _integer,
    "number": _number,
    "object": _container("{"),
    "array": _container("["),
}
"""Readers of the types other than string. If several types are allowed, this order applies."""

_TYPE_NAMES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
