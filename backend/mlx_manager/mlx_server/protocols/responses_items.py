"""Emits the output items of a response in order, each with its events. Pure.

Whole responses use the same code as streams and drop the events.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from mlx_manager.mlx_server.protocols.blocks import Blocks, PassageKind
from mlx_manager.mlx_server.protocols.custom_input import CustomInput
from mlx_manager.mlx_server.protocols.logprobs import token_logprobs
from mlx_manager.mlx_server.protocols.responses_tools import WireTool
from mlx_manager.mlx_server.protocols.responses_turns import encode_reasoning
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.types import Logprobs, ReasoningDelta, RefusalDelta, TextDelta, ToolCallStarted


@dataclass(frozen=True, slots=True)
class ItemOptions:
    """`serial`: part of item ids. Reasoning: `summarizes` copies it to the summary, `encodes_reasoning` encodes it."""

    serial: str
    by_name: Mapping[str, WireTool] = field(default_factory=dict)
    summarizes: bool = False
    encodes_reasoning: bool = False


class Items(Blocks):
    """`items`: the items so far; the open item is in its initial state."""

    def __init__(self, options: ItemOptions) -> None:
        super().__init__()
        self.items: list[JsonObject] = []
        self.is_incomplete = False
        """Whether the item that ends next is cut off."""
        self._options = options
        self._texts: list[str] = []
        self._logprobs: list[JsonObject] = []
        self._unsent_logprobs: list[JsonObject] = []
        self._custom: CustomInput | None = None

    def add_logprobs(self, logprobs: Logprobs) -> None:
        """Adds the logprobs of the next text."""
        self._unsent_logprobs += token_logprobs(logprobs)

    def _open(self, block: PassageKind | ToolCallStarted) -> Iterator[JsonObject]:
        self._texts, self._logprobs, self._custom = [], [], None
        self.items.append(self._new(block))
        yield self._event("output_item.added", item=dict(self.items[-1]))
        if isinstance(block, ToolCallStarted):
            return
        yield self._item_event("content_part.added", content_index=0, part=_part(block, ""))
        if block is ReasoningDelta and self._options.summarizes:
            yield self._item_event("reasoning_summary_part.added", summary_index=0, part=_summary(""))

    def _new(self, block: PassageKind | ToolCallStarted) -> JsonObject:
        if block is ReasoningDelta:
            return {"id": self._id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": []}
        if not isinstance(block, ToolCallStarted):
            head: JsonObject = {"id": self._id("msg"), "type": "message", "status": "in_progress"}
            return {**head, "role": "assistant", "content": []}
        tool = self._options.by_name.get(block.name, WireTool(block.name))
        called: JsonObject = {"status": "in_progress", "call_id": block.id, "name": tool.name}
        if tool.namespace is not None:
            called["namespace"] = tool.namespace
        if tool.custom:
            self._custom = CustomInput()
            return {"id": self._id("ctc"), "type": "custom_tool_call", **called, "input": ""}
        return {"id": self._id("fc"), "type": "function_call", **called, "arguments": ""}

    def _add_text(self, kind: PassageKind, text: str) -> Iterator[JsonObject]:
        self._texts.append(text)
        if kind is TextDelta:
            logprobs, self._unsent_logprobs = self._unsent_logprobs, []
            self._logprobs += logprobs
            yield self._item_event("output_text.delta", content_index=0, delta=text, logprobs=logprobs)
        elif kind is RefusalDelta:
            yield self._item_event("refusal.delta", content_index=0, delta=text)
        else:
            yield self._item_event("reasoning_text.delta", content_index=0, delta=text)
            if self._options.summarizes:
                yield self._item_event("reasoning_summary_text.delta", summary_index=0, delta=text)

    def _add_arguments(self, arguments: str) -> Iterator[JsonObject]:
        if self._custom is None:
            self._texts.append(arguments)
            yield self._item_event("function_call_arguments.delta", delta=arguments)
        elif text := self._custom.feed(arguments):
            self._texts.append(text)
            yield self._item_event("custom_tool_call_input.delta", delta=text)

    def _end(self) -> Iterator[JsonObject]:
        item = self.items[-1]
        is_whole = not self.is_incomplete
        if self._custom is not None:
            text = "".join([*self._texts, self._custom.finish()])
            is_whole, item["input"] = self._custom.is_whole, text
            yield self._item_event("custom_tool_call_input.done", input=text)
        elif self.open is ToolCallStarted:
            arguments = "".join(self._texts)
            is_whole, item["arguments"] = _is_json(arguments), arguments
            yield self._item_event("function_call_arguments.done", arguments=arguments)
        else:
            yield from self._end_passage(item, "".join(self._texts))
        item["status"] = "completed" if is_whole else "incomplete"
        yield self._event("output_item.done", item=dict(item))

    def _end_passage(self, item: JsonObject, text: str) -> Iterator[JsonObject]:
        assert self.open is not None
        assert not issubclass(self.open, ToolCallStarted)
        part = _part(self.open, text, self._logprobs)
        item["content"] = [part]
        if self.open is TextDelta:
            yield self._item_event("output_text.done", content_index=0, text=text, logprobs=self._logprobs)
        elif self.open is RefusalDelta:
            yield self._item_event("refusal.done", content_index=0, refusal=text)
        else:
            yield self._item_event("reasoning_text.done", content_index=0, text=text)
        yield self._item_event("content_part.done", content_index=0, part=part)
        if self.open is ReasoningDelta and self._options.encodes_reasoning:
            item["encrypted_content"] = encode_reasoning(text)
        if self.open is ReasoningDelta and self._options.summarizes:
            item["summary"] = [_summary(text)]
            yield self._item_event("reasoning_summary_text.done", summary_index=0, text=text)
            yield self._item_event("reasoning_summary_part.done", summary_index=0, part=_summary(text))

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._options.serial}{self.index:04x}"

    def _event(self, name: str, **fields: object) -> JsonObject:
        return {"type": f"response.{name}", "output_index": self.index, **fields}

    def _item_event(self, name: str, **fields: object) -> JsonObject:
        return self._event(name, item_id=self.items[-1]["id"], **fields)


def _is_json(arguments: str) -> bool:
    """Whether the arguments of a call are complete."""
    try:
        msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _part(kind: PassageKind, text: str, logprobs: list[JsonObject] | None = None) -> JsonObject:
    if kind is ReasoningDelta:
        return {"type": "reasoning_text", "text": text}
    if kind is RefusalDelta:
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def _summary(text: str) -> JsonObject:
    return {"type": "summary_text", "text": text}
