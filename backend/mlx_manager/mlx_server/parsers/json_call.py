"""A call as a JSON object, `{"name": ..., "arguments": {...}}`: its arguments are passed on as they come.

Read as well: `parameters` for `arguments`, arguments as a string that holds JSON, the call inside of `function`.
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
_REMAINS = re.compile(r"[\s,;}\]]+")
"""What models write too much of behind a call, or between two."""
KEYS_OF_AN_UNMARKED_CALL = ("name", "type", *ARGUMENT_KEYS)


@dataclass(slots=True)
class _Call:
    """`arguments` are those that came before the name; `known` are the names that a call without a marker may have.

    With `strays` it has members of other names.
    """

    known: Collection[str] | None
    name: str | None = None
    arguments: str | None = None
    sent: bool = False
    strays: bool = False


def read_call(source: Source, known: Collection[str] | None = None) -> Parse[None]:
    """Reads a call, its "{" consumed. With `known`, nothing tells a call from an answer in JSON but these names."""
    call = _Call(known)
    yield from _read_members(source, call)
    if call.name is None or (known is not None and not call.sent):
        raise Malformed("the call has no name, or no arguments")
    if call.strays and not call.sent and call.arguments is None:
        raise Malformed("the call's arguments are not in a member of their own")
    if not call.sent:
        source.emit(ToolCallStart(call.name))
        source.emit(ToolCallArguments(call.arguments if call.arguments is not None else "{}"))
    source.emit(ToolCallEnd())


def read_call_in_tags(source: Source, end: str) -> Parse[None]:
    """Reads a call, or several, or a list of them, up to the tag `end`, which may be missing. A code fence may be
    around them. The calls before a broken one stand.
    """
    fence = yield from source.accept("```json", "```")
    yield from source.skip_space()
    while True:
        if (yield from source.expect("{", "[")) == "[":
            yield from read_calls(source)
        else:
            yield from read_call(source)
        source.mark()
        yield from source.run(_REMAINS, lambda text: None)
        if (yield from source.peek()) not in ("{", "["):
            break
    if fence is not None:
        yield from source.accept("```")
        yield from source.skip_space()
    yield from source.accept(end)


def read_calls(source: Source) -> Parse[None]:
    """Reads calls in a JSON array, its "[" consumed. Those before a broken one stand."""
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
    """Passes on the arguments as a JSON object, be they one, a string that holds one, or null."""
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
            return  # behind a comma
        key = yield from _read_key(source, call)
        yield from source.skip_space()
        yield from source.expect(":")
        yield from source.skip_space()
        yield from _read_member(source, call, key)
        yield from source.skip_space()
        if call.sent and (yield from source.peek()) in ("", "<", "`"):
            return  # the arguments are whole; small models forget the last brace
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
        call.strays |= key not in _DETAILS
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
        raise Malformed("the arguments come before the name")
    if call.name is None:
        parts: list[str] = []
        yield from copy_arguments(source, parts.append)
        call.arguments = "".join(parts)
        return
    if (yield from source.peek()) not in ("{", '"', "'", "n", "N"):
        raise Malformed("the arguments are no object")
    source.emit(ToolCallStart(call.name))
    yield from copy_arguments(source, lambda text: source.emit(ToolCallArguments(text)))
    call.sent = True


def _object_in(text: str) -> str:
    """`text`, when it is an object in JSON."""
    check = Source()
    check.feed(text.strip())
    check.ended = True
    parts: list[str] = []
    for _ in _whole_object(check, parts.append):
        pass
    return "".join(parts)


def _whole_object(source: Source, sink: Sink) -> Parse[None]:
    if (yield from source.peek()) != "{":
        raise Malformed("the arguments are a string that holds no object")
    yield from copy_value(source, sink)
    if (yield from source.available()):
        raise Malformed("the arguments are a string that holds more than an object")
