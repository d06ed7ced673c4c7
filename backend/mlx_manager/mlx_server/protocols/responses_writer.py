"""Encodes a generation for the Responses API: numbered events, or one body. Pure."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, assert_never

from mlx_manager.mlx_server import errors
from mlx_manager.mlx_server.protocols.base import Writer
from mlx_manager.mlx_server.protocols.cache_diagnostics import responses_diagnostics
from mlx_manager.mlx_server.protocols.errors import error_body
from mlx_manager.mlx_server.protocols.responses_items import ItemOptions, Items
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

_ERROR_CODES: dict[type[errors.ServerError], str] = {
    errors.ContextLengthExceeded: "context_length_exceeded",
    errors.InvalidRequest: "invalid_prompt",
    errors.ServerBusy: "rate_limit_exceeded",
}
"""Error codes that clients distinguish; all other failures are `server_error`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesChat(ChatRequest):
    prompt_field: ClassVar[str] = "input"

    options: ItemOptions
    echo: Mapping[str, object] = field(default_factory=dict)
    """Request fields that the response repeats."""
    truncates: bool = False
    """Whether the oldest turns are dropped if the prompt is too long."""
    prewarms: bool = False
    """Whether the prompt is only read into the prefix cache: the response has no output."""


class ResponseSink(Protocol):
    """Receives the response in addition to the client, for example to store it."""

    @property
    def cancelled(self) -> bool: ...

    def keep(self, response: JsonObject) -> None: ...


class ResponsesWriter(Writer):
    def __init__(self, request: ResponsesChat, sink: ResponseSink | None = None) -> None:
        self._request = request
        self._sink = sink
        self._items = Items(request.options)
        self._sequence_number = 0
        self._reason: FinishReason = "stop"
        self._has_ended = False

    def frames(self, event: GenerationEvent) -> list[bytes]:
        return [self._frame(message) for message in self._messages(event)]

    def response(self, generation: Generation) -> JsonObject:
        """Equal to the response in the last event of the stream."""
        (choice,) = generation.choices
        for event in _replayed(choice):
            for _ in self._items_of(event):
                pass
        return self._final(generation.usage)

    def error_frame(self, error: Exception, request_id: str) -> bytes:
        """A failed response contains the cut-off item, without a `done` event."""
        self._has_ended = self._items.is_incomplete = True
        for _ in self._items.finish() if self._items.items else ():
            pass
        body = error_body(error)["error"]
        assert isinstance(body, dict)
        code = next((_ERROR_CODES[cls] for cls in type(error).__mro__ if cls in _ERROR_CODES), "server_error")
        failure = {"code": code, "message": body["message"]}
        failed = self._kept({**self._response("failed"), "error": failure})
        return self._frame({"type": "response.failed", "response": failed})

    def end(self) -> bytes:
        return b""

    def keep_alive(self) -> bytes:
        """An event, not a comment: the idle timeouts of clients do not count comments."""
        if self._has_ended or self._sequence_number == 0:
            return b""
        return self._frame({"type": "response.in_progress", "response": self.snapshot()})

    def snapshot(self) -> JsonObject:
        """The response in progress."""
        return {**self._response("in_progress"), "output": []}

    def _messages(self, event: GenerationEvent) -> Iterator[JsonObject]:
        match event:
            case Started():
                yield {"type": "response.created", "response": self.snapshot()}
                yield {"type": "response.in_progress", "response": self.snapshot()}
            case Prefilled():
                return
            case Completed(usage):
                self._has_ended = True
                response = self._final(usage)
                name = "completed" if response["status"] == "completed" else "incomplete"
                yield {"type": f"response.{name}", "response": response}
            case _:
                yield from self._items_of(event)

    def _items_of(
        self, event: TextDelta | ReasoningDelta | RefusalDelta | ToolCallStarted | ToolCallDelta | ChoiceFinished
    ) -> Iterator[JsonObject]:
        if self._request.prewarms:
            return
        match event:
            case TextDelta():
                self._items.add_logprobs(event.logprobs)
                yield from self._items.write(TextDelta, event.text)
            case ReasoningDelta() | RefusalDelta():
                yield from self._items.write(type(event), event.text)
            case ToolCallStarted():
                yield from self._items.call(event)
            case ToolCallDelta():
                yield from self._items.arguments(event)
            case ChoiceFinished():
                self._reason = event.reason
                self._items.is_incomplete = event.reason in ("length", "content_filter") or self._is_cancelled
                yield from self._items.finish()
            case _:
                assert_never(event)

    @property
    def _is_cancelled(self) -> bool:
        return self._sink is not None and self._sink.cancelled

    def _final(self, usage: Usage) -> JsonObject:
        reasons: Mapping[FinishReason, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
        reason = reasons.get(self._reason)
        status = "cancelled" if self._is_cancelled else "completed" if reason is None else "incomplete"
        ending: JsonObject = {"usage": _usage(usage)}
        if self._request.compare_with is not None:
            ending["prompt_cache_diagnostics"] = responses_diagnostics(usage)
        if status == "completed":
            ending["completed_at"] = int(time.time())
        if status == "incomplete":
            ending["incomplete_details"] = {"reason": reason}
        return self._kept({**self._response(status), **ending})

    def _kept(self, response: JsonObject) -> JsonObject:
        if self._sink is not None:
            self._sink.keep(response)
        return response

    def _response(self, status: str) -> JsonObject:
        request = self._request
        return {
            "id": request.id,
            "object": "response",
            "created_at": request.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": request.model,
            "output": [dict(item) for item in self._items.items],
            **request.echo,
            "background": False,
            "usage": None,
        }

    def _frame(self, message: JsonObject) -> bytes:
        number, self._sequence_number = self._sequence_number, self._sequence_number + 1
        return event_frame({**message, "sequence_number": number})


def _replayed(
    choice: Choice,
) -> Iterator[TextDelta | ReasoningDelta | RefusalDelta | ToolCallStarted | ToolCallDelta | ChoiceFinished]:
    """The events of a whole choice, one for each passage."""
    logprobs, end = list(choice.logprobs), 0
    for i, part in enumerate(choice.parts):
        if isinstance(part, ToolCall):
            yield ToolCallStarted(choice.index, i, part.id, part.name)
            yield ToolCallDelta(choice.index, i, part.arguments)
        elif part.kind is TextDelta:
            end += len(part.text)
            is_last = not any(isinstance(other, Passage) and other.kind is TextDelta for other in choice.parts[i + 1 :])
            count = len(logprobs) if is_last else sum(entry.offset < end for entry in logprobs)
            yield TextDelta(choice.index, part.text, tuple(logprobs[:count]))
            del logprobs[:count]
        else:
            yield part.kind(choice.index, part.text)
    yield ChoiceFinished(choice.index, choice.finish_reason, choice.stop)


def _usage(usage: Usage) -> JsonObject:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.stored_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
