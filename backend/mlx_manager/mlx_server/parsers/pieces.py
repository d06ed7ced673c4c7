"""What a model's output consists of, and the tools that it may call. Knows no format and no request."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec

from mlx_manager.mlx_server.errors import InvalidRequest

JsonSchema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments.

    A `strict` one is refused where a keyword of its schema cannot be enforced. A `custom` one takes text, which may be
    written as it is.
    """

    name: str
    parameters: JsonSchema
    strict: bool = False
    custom: bool = False


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """llguidance's Lark for calls of tools, and a sentence for each keyword of their schemas that it leaves out."""

    lark: str
    unenforced: tuple[str, ...] = ()


def known_name(name: str, names: Collection[str]) -> str:
    """The one of `names` that a model means, which may have written a namespace before it; else `name`."""
    last_part = re.split(r"[.:/]", name)[-1]
    return last_part if name not in names and last_part in names else name


def find_tool(name: str, tools: Iterable[Tool]) -> Tool | None:
    by_name = {tool.name: tool for tool in tools}
    return by_name.get(known_name(name, by_name))


class _Piece(msgspec.Struct, frozen=True):
    """Structs for speed, as events are."""


class Text(_Piece, frozen=True):
    text: str


class Reasoning(_Piece, frozen=True):
    text: str


class ToolCallStart(_Piece, frozen=True):
    name: str


class ToolCallArguments(_Piece, frozen=True):
    """A piece of the open call's arguments: all pieces together are one valid JSON object, once the call has ended."""

    text: str


class ToolCallEnd(_Piece, frozen=True):
    """The open call is complete."""


class ToolCallBroken(_Piece, frozen=True):
    """The open call did not parse on, and its arguments are no JSON; all of its text comes next, as `Text`."""


Piece = Text | Reasoning | ToolCallStart | ToolCallArguments | ToolCallEnd | ToolCallBroken


class UnsupportedToolSchema(InvalidRequest):
    """The model's way to write calls cannot be held to this schema; the message says what in it is at fault."""


def joined(pieces: list[Piece]) -> list[Piece]:
    """The same pieces, each run of text, reasoning or arguments as one."""
    if len(pieces) < 2:
        return pieces
    return [piece for kind, run in groupby(pieces, type) for piece in _join(kind, list(run))]


def _join(kind: type[Piece], run: list[Piece]) -> list[Piece]:
    if kind is Text or kind is Reasoning or kind is ToolCallArguments:
        return [kind("".join(piece.text for piece in run if isinstance(piece, Text | Reasoning | ToolCallArguments)))]
    return run
