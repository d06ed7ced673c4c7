"""Encodes an answer for Anthropic Messages: streamed content blocks, or one body. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

import pydantic_core

from mlx_manager.mlx_server.protocols.base import Writer
from mlx_manager.mlx_server.protocols.blocks import Blocks, PassageKind, joined_parts
from mlx_manager.mlx_server.protocols.cache_diagnostics import messages_diagnostics
from mlx_manager.mlx_server.protocols.messages_errors import anthropic_error
from mlx_manager.mlx_server.protocols.messages_turns import signature
from mlx_manager.mlx_server.protocols.text_frames import TextFrame
from mlx_manager.mlx_server.protocols.wire import JsonObject, event_frame
from mlx_manager.mlx_server.types import (
    ChatRequest,
    Choice,
    ChoiceFinished,
    Completed,
    FinishReason,
    Generation,
    GenerationEvent,
    Passage,
    Prefilled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesChat(ChatRequest):
    shows_reasoning: bool = True
    marks_cache: bool = False
    """Whether the client sent `cache_control`: only such clients read the cache counts."""


class MessagesWriter(Writer):
    keep_alive_seconds = 3

    def __init__(self, request: MessagesChat) -> None:
        self._request = request
        self._has_started = False
        self._has_ended = False
        self._blocks = _Blocks(request.shows_reasoning)
        self._finished: ChoiceFinished | None = None

    def frames(self, event: GenerationEvent) -> list[bytes]:
        if type(event) is TextDelta and (frame := self._blocks.text_frame(event.text)):
            return [frame]
        return [event_frame(message) for message in self._messages(event)]

    def response(self, generation: Generation) -> JsonObject:
        (choice,) = generation.choices
        ending = self._ending(choice.finish_reason, choice.stop, generation.usage)
        return self._message(_content(choice, self._request.shows_reasoning), ending, generation.usage)

    def error_frame(self, error: Exception, request_id: str) -> bytes:
        self._has_ended = True
        return event_frame(anthropic_error(error, request_id).body)

    def end(self) -> bytes:
        return b""

    def keep_alive(self) -> bytes:
        return b"" if self._has_ended else event_frame({"type": "ping"})

    def _messages(self, event: GenerationEvent) -> Iterator[JsonObject]:
        match event:
            case Started():
                return
            case Prefilled(prompt_tokens, cached_tokens, stored_tokens, miss, compared):
                usage = Usage(prompt_tokens, 0, cached_tokens, 0, stored_tokens, miss, compared)
                yield from self._start(usage)
            case TextDelta() | ReasoningDelta() | RefusalDelta():
                yield from self._start()
                yield from self._blocks.write(_kind(type(event)), event.text)
            case ToolCallStarted():
                yield from self._start()
                yield from self._blocks.call(event)
            case ToolCallDelta():
                yield from self._blocks.arguments(event)
            case ChoiceFinished():
                self._finished = event
                yield from self._start()
                yield from self._blocks.finish()
            case Completed(usage):
                assert self._finished is not None
                self._has_ended = True
                ending = self._ending(self._finished.reason, self._finished.stop, usage)
                yield {"type": "message_delta", "delta": ending, "usage": self._usage(usage)}
                yield {"type": "message_stop"}
            case _:
                assert_never(event)

    def _start(self, usage: Usage | None = None) -> Iterator[JsonObject]:
        """Without usage if the upstream sends it only after the answer."""
        if not self._has_started:
            self._has_started = True
            ending: JsonObject = {"stop_reason": None, "stop_sequence": None}
            message = self._message([], ending, usage if usage is not None else Usage(0, 0))
            yield {"type": "message_start", "message": message}

    def _message(self, content: list[JsonObject], ending: JsonObject, usage: Usage) -> JsonObject:
        head = {"id": self._request.id, "type": "message", "role": "assistant", "model": self._request.model}
        message: JsonObject = {**head, "content": content, **ending, "usage": self._usage(usage)}
        if self._request.compare_with is not None:
            message["diagnostics"] = messages_diagnostics(usage)
        return message

    def _ending(self, reason: FinishReason, stop: str | None, usage: Usage) -> JsonObject:
        by_stop_string = reason == "stop" and stop is not None
        return {
            "stop_reason": "stop_sequence" if by_stop_string else self._stop_reason(reason, usage),
            "stop_sequence": stop if by_stop_string else None,
        }

    def _stop_reason(self, reason: FinishReason, usage: Usage) -> str:
        """An upstream that does not report prompt tokens does not report answer tokens either."""
        match reason:
            case "stop":
                return "end_turn"
            case "tool_calls":
                return "tool_use"
            case "content_filter":
                return "refusal"
            case "length":
                limit = self._request.max_tokens
                is_cut = limit is not None and usage.prompt_tokens > 0 and usage.completion_tokens < limit
                return "model_context_window_exceeded" if is_cut else "max_tokens"
            case _:
                assert_never(reason)

    def _usage(self, usage: Usage) -> JsonObject:
        """The three counts of input tokens sum to the prompt tokens."""
        stored = usage.stored_tokens if self._request.marks_cache else 0
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens - stored,
            "cache_creation_input_tokens": stored,
            "cache_read_input_tokens": usage.cached_tokens,
            "cache_creation": {"ephemeral_5m_input_tokens": stored, "ephemeral_1h_input_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
            "server_tool_use": None,
            "service_tier": "standard",
        }


class _Blocks(Blocks):
    """Emits the content blocks of a stream as events."""

    def __init__(self, shows_reasoning: bool) -> None:
        super().__init__()
        self._shows_reasoning = shows_reasoning
        self._reasoning: list[str] = []
        self._text_frame: TextFrame | None = None

    def text_frame(self, text: str) -> bytes | None:
        """A frame that continues the open text block, from a template; None if another event is needed."""
        if self.open is not TextDelta:
            return None
        self._held = {}
        if self._text_frame is None:
            self._text_frame = TextFrame(lambda text: b"".join(map(event_frame, self._add_text(TextDelta, text))))
        return self._text_frame(text)

    def _open(self, block: PassageKind | ToolCallStarted) -> Iterator[JsonObject]:
        self._reasoning, self._text_frame = [], None  # the frame has the block's index
        if isinstance(block, ToolCallStarted):
            content: JsonObject = {"type": "tool_use", "id": _call_id(block.id), "name": block.name, "input": {}}
        else:
            content = _empty(block)
        yield {"type": "content_block_start", "index": self.index, "content_block": content}

    def _end(self) -> Iterator[JsonObject]:
        if self.open is ReasoningDelta:
            yield self._part(
                {"type": "signature_delta", "signature": _signature(self._reasoning, self._shows_reasoning)}
            )
        yield {"type": "content_block_stop", "index": self.index}

    def _add_arguments(self, arguments: str) -> Iterator[JsonObject]:
        yield self._part({"type": "input_json_delta", "partial_json": arguments})

    def _add_text(self, kind: PassageKind, text: str) -> Iterator[JsonObject]:
        if kind is TextDelta:
            yield self._part({"type": "text_delta", "text": text})
        elif self._shows_reasoning:
            yield self._part({"type": "thinking_delta", "thinking": text})
        else:
            self._reasoning.append(text)

    def _part(self, delta: JsonObject) -> JsonObject:
        return {"type": "content_block_delta", "index": self.index, "delta": delta}


def _content(choice: Choice, shows_reasoning: bool) -> list[JsonObject]:
    """The blocks of a whole answer, equal to the blocks of its stream."""
    parts = tuple(Passage(_kind(part.kind), part.text) if isinstance(part, Passage) else part for part in choice.parts)
    return [_block(part, shows_reasoning) for part in joined_parts(parts)] or [_empty(TextDelta)]


def _kind(kind: PassageKind) -> PassageKind:
    """Messages have no refusal block, so a refusal becomes text."""
    return ReasoningDelta if kind is ReasoningDelta else TextDelta


def _block(part: Passage | ToolCall, shows_reasoning: bool) -> JsonObject:
    if isinstance(part, ToolCall):
        return {"type": "tool_use", "id": _call_id(part.id), "name": part.name, "input": _input(part.arguments)}
    if part.kind is TextDelta:
        return {**_empty(TextDelta), "text": part.text}
    thinking = part.text if shows_reasoning else ""
    return {"type": "thinking", "thinking": thinking, "signature": _signature([part.text], shows_reasoning)}


def _empty(kind: PassageKind) -> JsonObject:
    if kind is TextDelta:
        return {"type": "text", "text": "", "citations": None}
    return {"type": "thinking", "thinking": "", "signature": ""}


def _signature(reasoning: list[str], shows_reasoning: bool) -> str:
    """Carries hidden reasoning, which the client sends back in the next turn."""
    return signature("" if shows_reasoning else "".join(reasoning))


def _input(arguments: str) -> object:
    """The arguments as an object; incomplete JSON is completed as SDKs do for a stream."""
    try:
        written = pydantic_core.from_json(arguments, allow_partial=True)
    except ValueError:
        return {}
    return written if isinstance(written, dict) else {}


def _call_id(call_id: str) -> str:
    return f"toolu_{call_id.removeprefix('call_')}"
