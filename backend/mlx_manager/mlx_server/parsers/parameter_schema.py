"""Reads the schema of each parameter of a tool, for formats that write parameters separately."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlx_manager.mlx_server.parsers.pieces import JsonSchema, Tool, UnsupportedToolSchema
from mlx_manager.mlx_server.parsers.schema_values import argument_schema, resolve, schema_types
from mlx_manager.mlx_server.types import ENFORCED_FORMATS

_ROOT_KEYWORDS = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_SHARED_KEYWORDS = ("$defs", "definitions", "x-guidance")
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id"}
_STRING_KEYWORDS = {"type", "enum", "const", "minLength", "maxLength", "$ref", "anyOf", "oneOf", "$defs", "definitions"}
_SCALARS = {"string", "null", "boolean", "integer", "number"}


@dataclass(frozen=True, slots=True)
class ParameterKind:
    """`is_string`: the value is text, one of `choices` if not empty, with a `length` within bounds.

    `schema` is self-contained. `is_nested`: the value may be a list or an object. `beyond`: keywords that cannot be
    enforced for text.
    """

    schema: JsonSchema
    is_string: bool
    is_nested: bool
    choices: tuple[str, ...]
    length: tuple[int, int | None]
    beyond: tuple[str, ...] = ()


def keywords_beyond_parameters(tool: Tool) -> list[str]:
    """Top-level keywords that cannot be enforced if parameters are written separately.

    Raises UnsupportedToolSchema if the top level does not list all parameters.
    """
    beyond = [key for key in tool.parameters if not _is_known(key, _ROOT_KEYWORDS)]
    for keyword in ("$ref", "allOf"):
        if keyword in beyond:
            raise UnsupportedToolSchema(
                f"The call format of this model cannot enforce a call of {tool.name!r}, because its parameters have "
                f"{keyword!r} at the top level. Use 'properties' instead, or set tool_choice to 'auto'.",
                param="tools",
            )
    return beyond


def tool_parameters(tool: Tool) -> dict[str, bool]:
    """The tool's parameters in order, and whether each is required."""
    properties = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", [])
    return {key: key in required for key in [*properties, *(key for key in required if key not in properties)]}


def parameter_kind(tool: Tool, key: str) -> ParameterKind:
    schema = resolve(argument_schema(tool, key), tool.parameters)
    types = set(schema_types(schema, tool.parameters))
    is_string = not types or "string" in types
    shared = {name: tool.parameters[name] for name in _SHARED_KEYWORDS if name in tool.parameters}
    return ParameterKind(
        schema={**shared, **schema},
        is_string=is_string,
        is_nested=bool(types & {"object", "array"}),
        choices=_choices(schema),
        length=(schema.get("minLength", 0), schema.get("maxLength")),
        beyond=tuple(_beyond_text(tool, schema, types)) if is_string else (),
    )


def _choices(schema: JsonSchema) -> tuple[str, ...]:
    values: list[Any] = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return tuple("null" if value is None else value for value in values if value is None or isinstance(value, str))


def _beyond_text(tool: Tool, schema: JsonSchema, types: set[str]) -> Iterator[str]:
    known = _STRING_KEYWORDS if schema.get("format") in ENFORCED_FORMATS else {*_STRING_KEYWORDS, "format"}
    yield from (keyword for keyword in schema if not _is_known(keyword, known))
    if not types <= _SCALARS:
        yield "type"
    for keyword in ("anyOf", "oneOf"):
        for option in schema.get(keyword, []):
            if "string" in schema_types(option, tool.parameters):
                yield from (name for name in option if not _is_known(name, {"type"}))


def _is_known(keyword: str, known: set[str]) -> bool:
    return keyword in known or keyword in _ANNOTATIONS or keyword.startswith("x-")
