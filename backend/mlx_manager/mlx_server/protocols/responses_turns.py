"""Converts the items of a Responses request to turns for the chat template. Pure.

An assistant turn is a sequence of items: reasoning, messages and calls.
"""

import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.responses_parameters import RESPONSES
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.schemas.responses import AnyItem, Item, OtherItem, Part
from mlx_manager.mlx_server.types import CUSTOM_INPUT, ChatTurn, ToolCall

BETWEEN_PARTS = "\n\n"
IMAGE_NOTE = "[An image, which is not shown: this model reads text.]"
_ENCODED_PREFIX = b"mlx-manager:"

NameOfCall = Callable[[str, str | None], str]
"""Maps the wire name and namespace of a tool to the name that the model uses."""


def response_turns(
    items: Sequence[AnyItem], name_of_call: NameOfCall, reject_unknown: bool, record: GenerationRecord
) -> list[ChatTurn]:
    """Adds left-out items to the record. Raises InvalidRequest and UnsupportedParameter, which name the field."""
    reader = _Reader(name_of_call, reject_unknown)
    turns = list(reader.turns(items))
    record.ignored_items = reader.left_out.total()
    record.warnings += [
        f"input: {count} items of type {kind[:100]!r} are left out: this server does not support them"
        for kind, count in reader.left_out.items()
    ]
    return turns


def encode_reasoning(reasoning: str) -> str:
    """Encodes reasoning as `encrypted_content`, for clients that store conversations. Not encrypted."""
    return base64.b64encode(_ENCODED_PREFIX + reasoning.encode()).decode()


def _decode_reasoning(text: str | None) -> str:
    """The decoded reasoning; empty for content encrypted by another server."""
    try:
        opened = base64.b64decode(text or "", validate=True)
        return opened.removeprefix(_ENCODED_PREFIX).decode() if opened.startswith(_ENCODED_PREFIX) else ""
    except (binascii.Error, ValueError):
        return ""


class _Reader:
    def __init__(self, name_of_call: NameOfCall, reject_unknown: bool) -> None:
        self.left_out: Counter[str] = Counter()
        self._name_of_call = name_of_call
        self._reject_unknown = reject_unknown
        self._assistant: ChatTurn | None = None
        """The incomplete assistant turn."""

    def turns(self, items: Sequence[AnyItem]) -> Iterator[ChatTurn]:
        for i, item in enumerate(items):
            where = f"input[{i}]"
            if isinstance(item, OtherItem):
                self.left_out[item.type] += 1
            elif item.type != "additional_tools":
                check_unused(item.model_extra, self._reject_unknown, f"{where}.", RESPONSES)
                yield from self._item(item, where)
        yield from self._complete()

    def _item(self, item: Item, where: str) -> Iterator[ChatTurn]:
        match item.type:
            case "message" if item.role == "assistant":
                text = self._text(item.content, item, f"{where}.content")
                if self._assistant is not None and (self._assistant.content or self._assistant.tool_calls):
                    yield from self._complete()
                self._add(content=text)
            case "message":
                yield from self._complete()
                role = _needed(item.role, "role", item, where)
                text = self._text(item.content, item, f"{where}.content")
                yield ChatTurn("system" if role == "developer" else role, text)
            case "reasoning":
                if self._assistant is not None and (self._assistant.content or self._assistant.tool_calls):
                    yield from self._complete()
                before = self._assistant.reasoning if self._assistant is not None else None
                self._add(reasoning=BETWEEN_PARTS.join(filter(None, (before, self._reasoning(item, where)))) or None)
            case "function_call" | "custom_tool_call":
                call = self._call(item, where)
                before_calls = self._assistant.tool_calls if self._assistant is not None else ()
                self._add(tool_calls=(*before_calls, call))
            case "function_call_output" | "custom_tool_call_output":
                yield from self._complete()
                text = self._text(item.output, item, f"{where}.output", shows_images=False)
                yield ChatTurn("tool", text, tool_call_id=_needed(item.call_id, "call_id", item, where))
            case _:
                raise InvalidRequest(
                    f"Stored item {str(item.id)[:100]!r} not found. Send the item itself.", param=f"{where}.id"
                )

    def _add(self, **fields: object) -> None:
        turn = self._assistant if self._assistant is not None else ChatTurn("assistant", None)
        self._assistant = replace(turn, **fields)  # type: ignore[arg-type]

    def _complete(self) -> Iterator[ChatTurn]:
        """Drops reasoning without a following message or call."""
        turn, self._assistant = self._assistant, None
        if turn is not None and (turn.content is not None or turn.tool_calls):
            yield turn
        elif turn is not None:
            self.left_out["reasoning"] += 1

    def _call(self, item: Item, where: str) -> ToolCall:
        call_id = _needed(item.call_id, "call_id", item, where)
        name = self._name_of_call(_needed(item.name, "name", item, where), item.namespace)
        if item.type == "custom_tool_call":
            arguments = json.dumps({CUSTOM_INPUT: _needed(item.input, "input", item, where)}, ensure_ascii=False)
        else:
            arguments = _needed(item.arguments, "arguments", item, where)
        return ToolCall(call_id, name, arguments)

    def _reasoning(self, item: Item, where: str) -> str:
        """The full reasoning if present, else the summary."""
        content = item.content if isinstance(item.content, list) else []
        texts = [part.text for part in content if part.text]
        texts = texts or [opened for opened in [_decode_reasoning(item.encrypted_content)] if opened]
        return BETWEEN_PARTS.join(texts or [part.text for part in item.summary or () if part.text])

    def _text(self, content: str | list[Part] | None, item: Item, where: str, *, shows_images: bool = True) -> str:
        if content is None:
            raise InvalidRequest(
                f"The item of type {item.type!r} has no text. Send a string or a list of parts.", param=where
            )
        if isinstance(content, str):
            return content
        between = "" if item.role == "assistant" else BETWEEN_PARTS
        texts = (self._part(part, f"{where}[{i}]", shows_images) for i, part in enumerate(content))
        return between.join(filter(None, texts))

    def _part(self, part: Part, where: str, shows_images: bool) -> str:
        """Replaces images in tool outputs by a note: a refusal would fail every later turn of the conversation."""
        match part.type:
            case "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text":
                text = part.text
            case "refusal":
                text = part.refusal
            case "input_image" if not shows_images:
                return IMAGE_NOTE
            case other:
                raise UnsupportedParameter(
                    f"Content of type {other[:100]!r} is not supported. Remove the part.",
                    param=f"{where}.type",
                )
        check_unused(part.model_extra, self._reject_unknown, f"{where}.", RESPONSES)
        if text is None:
            raise InvalidRequest(f"The part of type {part.type!r} has no text. Send it.", param=where)
        return text


def _needed(value: str | None, field: str, item: Item, where: str) -> str:
    if value is None:
        raise InvalidRequest(
            f"The item of type {item.type[:100]!r} has no {field!r}. Send it.", param=f"{where}.{field}"
        )
    return value
