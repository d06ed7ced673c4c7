"""Assembles the tool calls of one choice from an upstream's pieces. Knows no HTTP.

OpenAI's servers number the calls and send id and name with the first piece, then the arguments in pieces. Others use
index 0 for all calls or no index, repeat ids and names, send the name after the id or in pieces, or send the arguments
as an object.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from mlx_manager.mlx_server.services.upstreams.shapes import BadChunk, CallPiece
from mlx_manager.mlx_server.types import ToolCallDelta, ToolCallStarted

CallEvent = ToolCallStarted | ToolCallDelta
_EXCERPT_CHARACTERS = 100


@dataclass(slots=True)
class _Call:
    index: float | str | None
    id: str
    """The upstream's id; empty if it sends none."""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    """Non-empty pieces of the arguments."""
    sent: int = 0
    """Number of pieces already sent."""
    number: int | None = None
    """Index among the calls of the choice, once the call has started."""

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)

    @property
    def is_whole(self) -> bool:
        return bool(self.pieces) and self.pieces[-1].rstrip().endswith("}") and _is_object(self.arguments)


class ToolCallCollector:
    def __init__(self, choice: int) -> None:
        self._choice = choice
        self._calls: list[_Call] = []
        self._sent_ids: set[str] = set()

    def add(self, piece: CallPiece) -> Iterator[CallEvent]:
        """Raises BadChunk for a piece that contradicts earlier ones."""
        arguments = _arguments(piece)
        call = self._call_of(piece, arguments)
        if call is None:
            yield from self._send_named()  # their names are complete now
            call = _Call(piece.index, piece.call_id)
            self._calls.append(call)
        elif arguments.startswith("{") and call.is_whole and arguments == call.arguments:
            return  # a repetition
        call.id = call.id or piece.call_id
        _add_name(call, piece.name)
        if arguments and (call.pieces or arguments != "null"):
            call.pieces.append(arguments)
            yield from self._send(call)

    def finish(self, *, whole: bool) -> Iterator[CallEvent]:
        """The remaining events. With `whole`, raises BadChunk for an incomplete call."""
        yield from self._send_named()
        for call in self._calls if whole else ():
            if not call.name:
                raise BadChunk(f"sent a tool call without a name{f' (id {call.id!r})' if call.id else ''}")
            if not call.arguments.strip():
                call.pieces.append("{}")
                yield from self._send(call)
            elif not call.is_whole:
                shown = repr(call.arguments[:_EXCERPT_CHARACTERS])
                raise BadChunk(f"sent arguments of tool call {call.name!r} that are not one JSON object: {shown}")

    def _call_of(self, piece: CallPiece, arguments: str) -> _Call | None:
        """The call that the piece continues; None for a new call."""
        latest_first = self._calls[::-1]
        numbered = [call for call in latest_first if piece.index is None or call.index in (piece.index, None)]
        by_id = next((call for call in numbered if piece.call_id and call.id == piece.call_id), None)
        if by_id is not None:
            return by_id
        if not numbered or (piece.index is None and piece.call_id):
            begins = piece.call_id or piece.name or not self._calls
            return None if begins else latest_first[0]
        call = numbered[0]
        return None if _begins_another(call, piece, arguments) else call

    def _send_named(self) -> Iterator[CallEvent]:
        for call in self._calls:
            if call.name and call.number is None:
                yield from self._send(call)

    def _send(self, call: _Call) -> Iterator[CallEvent]:
        if not call.name:
            return
        if call.number is None:
            call.number = sum(other.number is not None for other in self._calls)
            yield ToolCallStarted(self._choice, call.number, self._id_to_send(call), call.name)
        for arguments in call.pieces[call.sent :]:
            yield ToolCallDelta(self._choice, call.number, arguments)
        call.sent = len(call.pieces)

    def _id_to_send(self, call: _Call) -> str:
        """The upstream's id if it is unique in the choice, else a new one: clients answer by id."""
        call_id = call.id if call.id and call.id not in self._sent_ids else f"call_{uuid.uuid4().hex[:24]}"
        self._sent_ids.add(call_id)
        return call_id


def _begins_another(call: _Call, piece: CallPiece, arguments: str) -> bool:
    """Whether the piece, with the index of `call` but another id, starts another call.

    vLLM has sent a new id with each piece of one call, so a new id alone counts only after a whole call.
    """
    if piece.call_id and call.id:
        return bool(piece.name) or call.is_whole
    if not piece.name or not call.name:
        return False
    if piece.index is None and not call.pieces:
        return True
    return call.is_whole and bool(arguments or piece.name != call.name)


def _add_name(call: _Call, name: str) -> None:
    """A name may come in pieces before the arguments, and be repeated whole."""
    if not name or name == call.name:
        return
    if call.number is not None:
        raise BadChunk(f"renamed tool call {call.name!r} to {name!r}")
    call.name += name


def _arguments(piece: CallPiece) -> str:
    raw = bytes(piece.arguments)
    if not raw or raw == b"null":
        return ""
    if raw.startswith(b'"'):
        return msgspec.json.decode(raw, type=str)
    if raw.startswith(b"{"):
        return raw.decode()
    raise BadChunk(f"sent tool call arguments that are neither text nor an object: {raw[:_EXCERPT_CHARACTERS]!r}")


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except msgspec.DecodeError:
        return False
