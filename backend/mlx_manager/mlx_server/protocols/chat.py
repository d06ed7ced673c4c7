"""Chat Completions: the wire's shapes to `ChatRequest`, and events to chunks or one response. Pure."""

import time
import uuid
from typing import assert_never

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.parameters import check_unused, warn_once
from mlx_manager.mlx_server.protocols.wire import JsonObject, sampling_overrides, stop_strings, usage_json, wants_usage
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.types import (
    ChatRequest,
    ChatTurn,
    ChoiceFinished,
    Completed,
    Generation,
    GenerationEvent,
    Started,
    TextDelta,
)

_SERVED_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""The role on the wire, and the one that chat templates know."""


def to_request(body: openai.ChatCompletionRequest, default_max_tokens: int) -> ChatRequest:
    """Raises InvalidRequest and UnsupportedParameter, which name the field."""
    check_unused(body.model_extra)
    if body.max_completion_tokens is not None and body.max_tokens is not None:
        raise InvalidRequest(
            "max_tokens and max_completion_tokens are the same limit: give one of them.", param="max_completion_tokens"
        )
    return ChatRequest(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.model,
        sampling=sampling_overrides(body),
        max_tokens=body.max_completion_tokens if body.max_tokens is None else body.max_tokens,
        default_max_tokens=default_max_tokens,
        stop=stop_strings(body.stop),
        include_usage=wants_usage(body.stream_options),
        turns=tuple(_turn(message, f"messages[{i}]") for i, message in enumerate(body.messages)),
    )


def _turn(message: openai.ChatMessage, where: str) -> ChatTurn:
    if message.role not in _SERVED_ROLES:
        raise UnsupportedParameter(f"Messages of role {message.role!r} are not supported yet.", param=f"{where}.role")
    for name, value in (message.model_extra or {}).items():
        if not value:
            continue
        if name in ("tool_calls", "function_call", "tool_call_id", "audio"):
            raise UnsupportedParameter(f"{name!r} in a message is not supported yet.", param=f"{where}.{name}")
        warn_once(f"messages[].{name}")
    return ChatTurn(_SERVED_ROLES[message.role], _text(message, where), message.name)


def _text(message: openai.ChatMessage, where: str) -> str:
    if message.content is None:
        raise InvalidRequest("The message has no content: give a string.", param=f"{where}.content")
    if isinstance(message.content, str):
        return message.content
    return "".join(_part_text(part, f"{where}.content[{i}]") for i, part in enumerate(message.content))


def _part_text(part: openai.ContentPart, where: str) -> str:
    if part.type != "text":
        raise UnsupportedParameter(
            f"Content of type {part.type!r} is not supported: this model reads text.", param=where
        )
    if part.text is None:
        raise InvalidRequest("A content part of type 'text' needs a 'text'.", param=where)
    return part.text


class ChatBuilder:
    """Writes one request's answer: chunk by chunk from its events, or whole from its generation."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request

    def event(self, event: GenerationEvent) -> list[JsonObject]:
        match event:
            case Started():
                return [self._chunk(0, {"role": "assistant", "content": ""}, None)]
            case TextDelta(index, text):
                return [self._chunk(index, {"content": text}, None)]
            case ChoiceFinished(index, reason):
                return [self._chunk(index, {}, reason)]
            case Completed(usage):
                if not self._request.include_usage:
                    return []
                return [{**self._head("chat.completion.chunk"), "choices": [], "usage": usage_json(usage)}]
            case _:
                assert_never(event)

    def response(self, generation: Generation) -> JsonObject:
        choices = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for choice in generation.choices
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage_json(generation.usage)}

    def _chunk(self, index: int, delta: JsonObject, finish_reason: str | None) -> JsonObject:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage: JsonObject = {"usage": None} if self._request.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _head(self, object_name: str) -> JsonObject:
        request = self._request
        return {"id": request.id, "object": object_name, "created": request.created, "model": request.model}
