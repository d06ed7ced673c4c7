"""A call as a JSON object, `{"name": ..., "arguments": {...}}`. Streams the arguments.

Also accepts `parameters` for `arguments`, arguments as a JSON string, and a call nested in `function`.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

from mlx_manager.mlx_server.parsers.json_text import copy_value, read_string
from mlx_manager.mlx_server.parsers.pieces import ToolCallArguments, ToolCallEnd, ToolCallStart
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Sink, Source

ARGUMENT_KEYS = ("arguments", "parameters")
_DETAILS = ("id", "type", "index")
_EXTRA_CHARACTERS = re.compile(r"[\s,;}\]]+")
"""Extra characters that models write after a call or between calls."""
KEYS_OF_AN_UNMARKED_CALL = ("name", "type", *ARGUMENT_KEYS)


@dataclass(slots=True)
class _Call:
    """`arguments`: set if they precede the name. `known`: the names that a call without a marker may have.

    `has_unknown_members`: whether the call has unknown members.
    """

    known: Collection[str] | None
    name: str | None = None
    arguments: str | None = None
    sent: bool = False
    has_unknown_members: bool = False


def read_call(source: Source, known: Collection[str] | None = None) -> Parse[None]:
    """Reads a call after its "{". With `known`, only these names distinguish a call from a JSON answer."""
    call = _Call(known)
    yield from _read_members(source, call)
    if call.name is None or (known is not None and not call.sent):
        raise Malformed("the call has no name or no arguments")
    if call.has_unknown_members and not call.sent and call.arguments is None:
        raise Malformed("the call has arguments as direct members")
    if not call.sent:
        source.emit(ToolCallStart(call.name))
        source.emit(ToolCallArguments(call.arguments if call.arguments is not None else "{}"))
    source.emit(ToolCallEnd())


def read_call_in_tags(source: Source, end: str) -> Parse[None]:
    """Reads calls or lists of calls up to the optional tag `end`, with or without a code fence. Keeps the calls
    before a malformed one.
    """
    fence = yield from source.accept("```json", "```")
    yield from source.skip_space()
    while True:
        if (yield from source.expect("{", "[")) == "[":
            yield from read_calls(source)
        else:
            yield from read_call(source)
        source.mark()
        yield from source.run(_EXTRA_CHARACTERS, lambda text: None)
        if (yield from source.peek()) not in ("{", "["):
            break
    if fence is not None:
        yield from source.accept("```")
        yield from source.skip_space()
    yield from source.accept(end)


def read_calls(source: Source) -> Parse[None]:
    """Reads calls in a JSON array after its "[". Keeps the calls before a malformed one."""
    yield from source.skip_space()
    if (yield from source.accept("]")):
        raise Malformed("the list of calls is empty")
    while True:
        yield from source.skip_space()
        yield from source.expect("{")
        yield from read_call(source)
        source.mark()
        yield from source.skip_space()
        if not (yield from source.available()) or (yield from source.accept("]")):
            return
        if (yield from source.peek()) != "{":
            yield from source.expect(",")


def copy_arguments(source: Source, sink: Sink) -> Parse[None]:
    """Writes the arguments as a JSON object, from an object, a string with an object, or null."""
    match (yield from source.peek()):
        case "{":
            yield from copy_value(source, sink)
        case '"' | "'":
            sink(_object_in((yield from read_string(source))))
        case _:
            yield from source.expect("null", "None")
            sink("{}")


def _read_members(source: Source, call: _Call) -> Parse[None]:
    yield from source.skip_space()
    if (yield from source.accept("}")):
        return
    while True:
        yield from source.skip_space()
        if call.known is None and (yield from source.accept("}")):
            return  # after a comma
        key = yield from _read_key(source, call)
        yield from source.skip_space()
        yield from source.expect(":")
        yield from source.skip_space()
        yield from _read_member(source, call, key)
        yield from source.skip_space()
        if call.sent and (yield from source.peek()) in ("", "<", "`"):
            return  # the arguments are complete; small models omit the last brace
        if (yield from source.expect(",", "}")) == "}":
            return


def _read_key(source: Source, call: _Call) -> Parse[str]:
    if call.known is None:
        return (yield from read_string(source))
    return (yield from source.expect(*(f'"{key}"' for key in KEYS_OF_AN_UNMARKED_CALL)))[1:-1]


def _read_member(source: Source, call: _Call, key: str) -> Parse[None]:
    if key in ARGUMENT_KEYS:
        yield from _read_arguments(source, call)
    elif key == "function" and (yield from source.accept("{")):
        yield from _read_members(source, call)
    elif key in ("name", "function"):
        yield from _read_name(source, call)
    else:
        call.has_unknown_members |= key not in _DETAILS
        yield from copy_value(source, lambda text: None)


def _read_name(source: Source, call: _Call) -> Parse[None]:
    if call.name is not None:
        raise Malformed("the call has two names")
    if call.known is None:
        call.name = yield from read_string(source)
    else:
        call.name = json.loads((yield from source.expect(*map(json.dumps, call.known))))
    if not call.name:
        raise Malformed("the call's name is empty")


def _read_arguments(source: Source, call: _Call) -> Parse[None]:
    if call.sent or call.arguments is not None:
        raise Malformed("the call has arguments twice")
    if call.name is None and call.known is not None:
        raise Malformed("the arguments precede the name")
    if call.name is None:
        parts: list[str] = []
        yield from copy_arguments(source, parts.append)
        call.arguments = "".join(parts)
        return
    if (yield from source.peek()) not in ("{", '"', "'", "n", "N"):
        raise Malformed("the arguments are not an object")
    source.emit(ToolCallStart(call.name))
    yield from copy_arguments(source, lambda text: source.emit(ToolCallArguments(text)))
    call.sent = True


def _object_in(text: str) -> str:
    """`text`, checked to be a JSON object. Raises Malformed."""
    check = Source()
    check.feed(text.strip())
    check.ended = True
    parts: list[str] = []
    for _ in _whole_object(check, parts.append):
        pass
    return "".join(parts)


def _whole_object(source: Source, sink: Sink) -> Parse[None]:
    if (yield from source.peek()) != "{":
        raise Malformed("the arguments are a string without an object")
    yield from copy_value(source, sink)
    if (yield from source.available()):
        raise Malformed("the arguments are a string with text after the object")
