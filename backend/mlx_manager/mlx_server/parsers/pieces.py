"""The pieces of a parsed model output, and the tools that it may call. Knows no output format and no request."""

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

    `strict`: refuse the tool if a keyword of its schema cannot be enforced. `custom`: the tool takes text, which may be
    written raw.
    """

    name: str
    parameters: JsonSchema
    strict: bool = False
    custom: bool = False


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """llguidance Lark for calls of tools, and a sentence for each schema keyword that is not enforced."""

    lark: str
    unenforced: tuple[str, ...] = ()


def known_name(name: str, names: Collection[str]) -> str:
    """The entry of `names` that equals `name` without a namespace prefix; else `name`."""
    last_part = re.split(r"[.:/]", name)[-1]
    return last_part if name not in names and last_part in names else name


def find_tool(name: str, tools: Iterable[Tool]) -> Tool | None:
    by_name = {tool.name: tool for tool in tools}
    return by_name.get(known_name(name, by_name))


class _Piece(msgspec.Struct, frozen=True):
    """A msgspec Struct for speed, like events."""


class Text(_Piece, frozen=True):
    text: str


class Reasoning(_Piece, frozen=True):
    text: str


class ToolCallStart(_Piece, frozen=True):
    name: str


class ToolCallArguments(_Piece, frozen=True):
    """A part of the open call's arguments. At the end of the call, all parts form one valid JSON object."""

    text: str


class ToolCallEnd(_Piece, frozen=True):
    """The open call is complete."""


class ToolCallBroken(_Piece, frozen=True):
    """The open call is malformed and its arguments are not valid JSON. Its whole text follows as `Text`."""


Piece = Text | Reasoning | ToolCallStart | ToolCallArguments | ToolCallEnd | ToolCallBroken


class UnsupportedToolSchema(InvalidRequest):
    """The call format of the model cannot enforce this schema; the message names the cause."""


def joined(pieces: list[Piece]) -> list[Piece]:
    """Joins adjacent pieces of text, reasoning or arguments."""
    if len(pieces) < 2:
        return pieces
    return [piece for kind, run in groupby(pieces, type) for piece in _join(kind, list(run))]


def _join(kind: type[Piece], run: list[Piece]) -> list[Piece]:
    if kind is Text or kind is Reasoning or kind is ToolCallArguments:
        return [kind("".join(piece.text for piece in run if isinstance(piece, Text | Reasoning | ToolCallArguments)))]
    return run
