"""Converts the system prompt and messages of Anthropic Messages to turns for the chat template. Pure.

A message is a list of blocks. Each tool result of a user message becomes a separate turn before the text.
"""

import base64
import binascii
from collections.abc import Iterator
from itertools import chain

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.messages_parameters import MESSAGES
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.wire import json_text
from mlx_manager.mlx_server.schemas.anthropic import Block, CountTokensRequest, Message, Source
from mlx_manager.mlx_server.types import ChatTurn, ToolCall

BETWEEN_BLOCKS = "\n\n"
_SIGNED = b"mlx-manager:"
_OF_SERVER_TOOLS = ("server_tool_use", "mcp_tool_use", "mcp_tool_result", "container_upload", "compaction", "fallback")
_RESULTS_OF_SERVER_TOOLS = "_tool_result"


def message_turns(body: CountTokensRequest, reject_unknown: bool) -> tuple[ChatTurn, ...]:
    """Raises InvalidRequest and UnsupportedParameter, which name the field."""
    reader = _Reader(reject_unknown)
    system = reader.texts(body.system, "system") if body.system is not None else ""
    leading = [ChatTurn("system", system)] if system else []
    messages = (reader.turns(message, f"messages[{i}]") for i, message in enumerate(body.messages))
    return (*leading, *chain.from_iterable(messages))


def signature(thinking: str) -> str:
    """Encodes reasoning that the client wants hidden as a signature; `message_turns` decodes it."""
    return base64.b64encode(_SIGNED + thinking.encode()).decode()


def _reasoning(block: Block) -> str:
    """The reasoning of the block or its signature; empty for signatures of other servers."""
    if block.thinking:
        return block.thinking
    try:
        signed = base64.b64decode(block.signature or "", validate=True)
        return signed.removeprefix(_SIGNED).decode() if signed.startswith(_SIGNED) else ""
    except (binascii.Error, ValueError):
        return ""


class _Reader:
    def __init__(self, reject_unknown: bool) -> None:
        self._reject_unknown = reject_unknown

    def turns(self, message: Message, where: str) -> Iterator[ChatTurn]:
        self._check_unused(message, f"{where}.")
        if message.content is None:
            raise InvalidRequest("The message has no content. Send a string or blocks.", param=f"{where}.content")
        if isinstance(message.content, str):
            yield ChatTurn(message.role, message.content)
            return
        blocks = [(block, f"{where}.content[{i}]") for i, block in enumerate(message.content)]
        match message.role:
            case "assistant":
                yield self._assistant(blocks)
            case "system":
                yield ChatTurn("system", self.texts(message.content, f"{where}.content"))
            case "user":
                yield from self._user(blocks)

    def texts(self, content: str | list[Block], where: str) -> str:
        if isinstance(content, str):
            return content
        texts = (self._text(block, f"{where}[{i}]") for i, block in enumerate(content))
        return BETWEEN_BLOCKS.join(filter(None, texts))

    def _user(self, blocks: list[tuple[Block, str]]) -> Iterator[ChatTurn]:
        results = [(block, place) for block, place in blocks if block.type == "tool_result"]
        for block, place in results:
            yield self._tool_result(block, place)
        texts = [self._text(block, place) for block, place in blocks if block.type != "tool_result"]
        if texts or not results:
            yield ChatTurn("user", BETWEEN_BLOCKS.join(filter(None, texts)))

    def _assistant(self, blocks: list[tuple[Block, str]]) -> ChatTurn:
        texts, thinking, calls = [], [], []
        for block, place in blocks:
            match block.type:
                case "thinking":
                    self._check_unused(block, f"{place}.")
                    thinking.append(_reasoning(block))
                case "redacted_thinking":
                    pass  # encrypted by another server
                case "tool_use":
                    calls.append(self._tool_use(block, place))
                case _:
                    texts.append(self._text(block, place))
        text, reasoning = "".join(texts), "".join(thinking)
        return ChatTurn(
            "assistant", text if text or not calls else None, tool_calls=tuple(calls), reasoning=reasoning or None
        )

    def _tool_use(self, block: Block, where: str) -> ToolCall:
        self._check_unused(block, f"{where}.")
        call_id, name = _needed(block.id, "id", block, where), _needed(block.name, "name", block, where)
        return ToolCall(call_id, name, json_text(block.input if block.input is not None else {}, f"{where}.input"))

    def _tool_result(self, block: Block, where: str) -> ChatTurn:
        self._check_unused(block, f"{where}.")
        call_id = _needed(block.tool_use_id, "tool_use_id", block, where)
        if isinstance(block.content, dict):
            raise InvalidRequest("Invalid tool_result. Send a string or a list of blocks.", param=f"{where}.content")
        content = block.content if block.content is not None else ""
        if isinstance(content, list):
            content = [_image_as_note(inner) for inner in content]
        text = self.texts(content, f"{where}.content")
        return ChatTurn("tool", f"Error: {text}" if block.is_error else text, tool_call_id=call_id)

    def _text(self, block: Block, where: str) -> str:
        """The text of the block for the prompt; empty for blocks without text."""
        if block.type in _OF_SERVER_TOOLS or block.type.endswith(_RESULTS_OF_SERVER_TOOLS):
            return ""
        self._check_unused(block, f"{where}.")
        match block.type:
            case "text":
                return _needed(block.text, "text", block, where)
            case "tool_reference":
                return f"The tool {_needed(block.tool_name, 'tool_name', block, where)} is available."
            case "search_result":
                return self._document(block, block.title, block.content, f"{where}.content")
            case "document":
                return self._document(block, block.title, _document_content(block, where), f"{where}.source.content")
            case "image":
                raise UnsupportedParameter("Images are not supported. Remove the block.", param=f"{where}.type")
            case other:
                raise UnsupportedParameter(
                    f"Blocks of type {other[:100]!r} are not supported in a message of this role. Remove the block.",
                    param=f"{where}.type",
                )

    def _document(self, block: Block, title: str | None, content: object, where: str) -> str:
        if not isinstance(content, str | list):
            raise InvalidRequest(
                f"The block of type {block.type!r} has no text. Send a string or a list of text blocks.", param=where
            )
        origin = block.source if isinstance(block.source, str) else None
        head = [line for line in (title, origin, block.context) if line]
        return "\n".join([*head, self.texts(content, where)])

    def _check_unused(self, value: Message | Block, where: str) -> None:
        check_unused(value.model_extra, self._reject_unknown, where, MESSAGES)


def _image_as_note(block: Block) -> Block:
    """Replaces images in tool results by a note: a refusal would fail every later turn of the conversation."""
    if block.type != "image":
        return block
    return Block(type="text", text="[An image, which is not shown: this model reads text.]")


def _document_content(block: Block, where: str) -> object:
    source = block.source
    if not isinstance(source, Source):
        raise InvalidRequest("The document has no 'source'. Send a source object.", param=f"{where}.source")
    if source.type == "text":
        return source.data
    if source.type == "content":
        return source.content
    raise UnsupportedParameter(
        f"Documents with a source of type {source.type[:100]!r} are not supported. Send a source of type 'text' "
        "or 'content'.",
        param=f"{where}.source.type",
    )


def _needed(value: str | None, field: str, block: Block, where: str) -> str:
    if value is None:
        raise InvalidRequest(
            f"The block of type {block.type[:100]!r} has no {field!r}. Send it.", param=f"{where}.{field}"
        )
    return value
