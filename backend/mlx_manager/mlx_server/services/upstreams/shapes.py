"""The chunks of OpenAI streams of chats and completions, in the shapes that upstreams actually send."""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from mlx_manager.mlx_server.services.upstreams.failures import is_error

_EXCERPT_CHARACTERS = 100


class BadChunk(Exception):
    """Invalid data from an upstream. The message follows the upstream's name: "sent ..."."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw()


class CallPiece(msgspec.Struct):
    """A piece of a tool call. Its arguments are text, or a whole object."""

    index: int | float | str | None = None
    id: str | int | None = None
    function: _Function | None = None

    @property
    def call_id(self) -> str:
        return str(self.id) if self.id is not None else ""

    @property
    def name(self) -> str:
        return (self.function.name or "") if self.function is not None else ""

    @property
    def arguments(self) -> msgspec.Raw:
        return self.function.arguments if self.function is not None else msgspec.Raw()


class Delta(msgspec.Struct):
    """Content and reasoning are a string or a list of parts."""

    content: object = None
    reasoning_content: object = None
    reasoning: object = None
    thinking: object = None
    refusal: str | None = None
    tool_calls: list[CallPiece] | None = None
    function_call: _Function | None = None

    @property
    def call_pieces(self) -> list[CallPiece]:
        pieces = self.tool_calls or []
        return pieces if self.function_call is None else [*pieces, CallPiece(function=self.function_call)]


class TopToken(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[Annotated[int, msgspec.Meta(ge=0, le=255)]] | None = None


class Token(TopToken):
    top_logprobs: list[TopToken] | None = None


class LogprobColumns(msgspec.Struct):
    """Logprobs: chats have a list of tokens in `content`, completions have columns."""

    content: list[Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None


class ChoiceChunk(msgspec.Struct):
    """Has `delta` or `text` in a stream, and `message` or `text` in a whole answer."""

    index: int | None = None
    delta: Delta | None = None
    message: Delta | None = None
    text: object = None
    logprobs: LogprobColumns | list[object] | None = None
    """Some servers send a list for no logprobs."""
    finish_reason: object = None
    stop_reason: object = None
    """The stop string that ended the choice (vLLM)."""
    error: object = None


class Chunk(msgspec.Struct):
    choices: list[ChoiceChunk] | None = None
    usage: object = None
    error: object = None
    message: object = None
    detail: object = None

    @property
    def is_failure(self) -> bool:
        """Whether it reports an error, in any of the shapes that servers use."""
        if self.choices is None:
            return is_error(self.error) or isinstance(self.message, str) or is_error(self.detail)
        return is_error(self.error) or any(is_error(choice.error) for choice in self.choices)


_decoder = msgspec.json.Decoder(Chunk)


def read_chunk(payload: bytes) -> Chunk:
    """Raises BadChunk."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:  # a ValidationError is a DecodeError
        raise BadChunk(f"sent an invalid chunk: {exc}") from exc


Kind = Literal["text", "reasoning", "refusal"]
_KINDS: dict[str, Kind] = {
    "text": "text",
    "output_text": "text",
    "thinking": "reasoning",
    "reasoning": "reasoning",
    "reasoning_content": "reasoning",
    "reasoning_text": "reasoning",
    "refusal": "refusal",
}
"""Kinds of content parts by their `type`."""


def texts_of(delta: Delta) -> dict[Kind, str]:
    """The text of a delta by kind. Reasoning sent under several names counts once. Raises BadChunk."""
    texts: dict[Kind, str] = {"text": "", "reasoning": "", "refusal": delta.refusal or ""}
    reasoning = delta.reasoning_content or delta.reasoning or delta.thinking
    sources: tuple[tuple[object, Kind], ...] = ((reasoning, "reasoning"), (delta.content, "text"))
    for content, kind in sources:
        if isinstance(content, str):
            texts[kind] += content
        elif content is not None:
            for part_kind, text in _parts(content, kind):
                texts[part_kind] += text
    return texts


def _parts(content: object, kind: Kind) -> Iterator[tuple[Kind, str]]:
    match content:
        case None:
            pass
        case str():
            yield kind, content
        case list():
            for part in content:
                yield from _parts(part, kind)
        case dict():
            part_type = content.get("type", "text")
            part_kind = _KINDS.get(part_type) if isinstance(part_type, str) else None
            names = (name for name in (part_type, "text", "content") if part_kind is not None and name in content)
            name = next(names, None)
            if part_kind is None or name is None:
                raise BadChunk(f"sent a content part that is not text: {str(content)[:_EXCERPT_CHARACTERS]}")
            yield from _parts(content[name], kind if part_kind == "text" else part_kind)
        case _:
            raise BadChunk(f"sent content that is not text: {str(content)[:_EXCERPT_CHARACTERS]}")
