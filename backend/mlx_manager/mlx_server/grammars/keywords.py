"""JSON schema keywords that llguidance cannot enforce, and when removing one changes nothing. Pure."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from mlx_manager.mlx_server.types import ENFORCED_FORMATS

Json = Any
"""A parsed JSON value: an untyped edge."""
JsonObject = dict[str, Json]

UNENFORCED = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "if",
        "not",
        "propertyNames",
        "unevaluatedItems",
        "uniqueItems",
    }
)
LEFT_OUT = frozenset(
    {
        "$anchor",
        "$defs",
        "$dynamicAnchor",
        "$id",
        "$recursiveAnchor",
        "definitions",
        "else",
        "id",
        "maxContains",
        "minContains",
        "then",
        "unevaluatedProperties",
        "x-guidance",
    }
)
"""Reference targets, keywords without effect of their own, and keywords that would set llguidance's options."""

_UNSUPPORTED_REGEX = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?<?[=!]|\\[1-9]|\\k<)")
_TYPES_OF = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
_MAX_LOOK = 5
"""Depth limit for comparing two schemas."""

Resolve = Callable[[Json], Json]
"""The schema, or the target of its `$ref`."""


def says_nothing(keyword: str, value: Json, schema: JsonObject) -> bool:
    """Whether the keyword has no effect in the schema."""
    match keyword:
        case "format":
            return isinstance(value, str) and value not in ENFORCED_FORMATS
        case "uniqueItems":
            return value is not True or schema.get("maxItems") in (0, 1)
        case "propertyNames":
            return value is True or value in ({}, {"type": "string"})
        case "not":
            return value is False or are_disjoint(schema, value, lambda part: part)
        case "contains":
            return schema.get("minContains") == 0 and "maxContains" not in schema
        case "if":
            return not {"then", "else"} & schema.keys()
        case "unevaluatedItems":
            return value is True or value == {}
        case "dependencies" | "dependentRequired" | "dependentSchemas":
            return not value
        case "minProperties":
            return isinstance(value, int) and value <= _required(schema)
        case "additionalItems":  # only for tuples of older drafts; llguidance would assume such a tuple
            return not isinstance(schema.get("items"), list)
    return False


def is_unenforced(keyword: str, value: Json, schema: JsonObject) -> bool:
    match keyword:
        case "pattern":
            return isinstance(value, str) and is_unsupported_regex(value)
        case "patternProperties":
            return isinstance(value, dict) and any(map(is_unsupported_regex, value))
        case "minProperties":  # llguidance counts undeclared properties, and two may have the same name
            return isinstance(value, int) and value > _required(schema) + 1
    return keyword in UNENFORCED


def is_unsupported_regex(pattern: str) -> bool:
    """Whether the pattern has look-around or backreferences."""
    return _UNSUPPORTED_REGEX.search(pattern) is not None


def are_disjoint(first: Json, second: Json, resolve: Resolve, look: int = _MAX_LOOK) -> bool:
    """Whether types, constants or a required property show that no value matches both schemas."""
    first, second = resolve(first), resolve(second)
    if first is False or second is False:
        return True
    if not isinstance(first, dict) or not isinstance(second, dict) or not look:
        return False
    for one, other in ((first, second), (second, first)):
        for keyword in ("anyOf", "oneOf"):
            branches = one.get(keyword)
            if isinstance(branches, list) and all(are_disjoint(part, other, resolve, look - 1) for part in branches):
                return True
    if _excludes(_types(first), _types(second)) or _excludes(_constants(first), _constants(second)):
        return True
    return any(
        are_disjoint(_property(first, name), _property(second, name), resolve, look - 1)
        for name in _names(first.get("required"))
        if name in _names(second.get("required"))
    )


def _excludes(first: set[str] | None, second: set[str] | None) -> bool:
    """None means any type."""
    return first is not None and second is not None and first.isdisjoint(second)


def _types(schema: JsonObject) -> set[str] | None:
    declared = schema.get("type")
    if declared is None:
        values = _constant_values(schema)
        return {_TYPES_OF.get(type(value), "null") for value in values} if values is not None else None
    return {
        "number" if name == "integer" else str(name)
        for name in (declared if isinstance(declared, list) else [declared])
    }


def _constants(schema: JsonObject) -> set[str] | None:
    values = _constant_values(schema)
    return {_canonical(value) for value in values} if values is not None else None


def _canonical(value: Json) -> str:
    """Equal for 1 and 1.0, which are the same JSON number."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, sort_keys=True)


def _constant_values(schema: JsonObject) -> list[Json] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _property(schema: JsonObject, name: str) -> Json:
    properties = schema.get("properties")
    return properties.get(name, True) if isinstance(properties, dict) else True


def _names(required: Json) -> Iterator[str]:
    return (name for name in required if isinstance(name, str)) if isinstance(required, list) else iter(())


def _required(schema: JsonObject) -> int:
    return len(set(_names(schema.get("required"))))
