"""Completions (legacy): the wire's shapes to `CompletionRequest`, and events to chunks or one response. Pure."""

import time
import uuid
from typing import assert_never

from mlx_manager.mlx_server.errors import UnsupportedParameter
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.wire import JsonObject, sampling_overrides, stop_strings, usage_json, wants_usage
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.types import (
    ChoiceFinished,
    Completed,
    CompletionRequest,
    Generation,
    GenerationEvent,
    Started,
    TextDelta,
)

DEFAULT_MAX_TOKENS = 16
"""As api.openai.com has it."""


def to_request(body: openai.CompletionRequest) -> CompletionRequest:
    """Raises UnsupportedParameter, which names the field."""
    check_unused(body.model_extra)
    if not isinstance(body.prompt, str):
        raise UnsupportedParameter("A prompt other than one string is not supported yet.", param="prompt")
    return CompletionRequest(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.model,
        sampling=sampling_overrides(body),
        max_tokens=body.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        stop=stop_strings(body.stop),
        include_usage=wants_usage(body.stream_options),
        prompt=body.prompt,
        echo=body.echo,
    )


class CompletionBuilder:
    """Writes one request's answer: chunk by chunk from its events, or whole from its generation."""

    def __init__(self, request: CompletionRequest) -> None:
        self._request = request

    def event(self, event: GenerationEvent) -> list[JsonObject]:
        match event:
            case Started():
                return []
            case TextDelta(index, text):
                return [self._chunk(index, text, None)]
            case ChoiceFinished(index, reason):
                return [self._chunk(index, "", reason)]
            case Completed(usage):
                if not self._request.include_usage:
                    return []
                return [{**self._head(), "choices": [], "usage": usage_json(usage)}]
            case _:
                assert_never(event)

    def response(self, generation: Generation) -> JsonObject:
        choices = [_choice(choice.index, choice.text, choice.finish_reason) for choice in generation.choices]
        return {**self._head(), "choices": choices, "usage": usage_json(generation.usage)}

    def _chunk(self, index: int, text: str, finish_reason: str | None) -> JsonObject:
        usage: JsonObject = {"usage": None} if self._request.include_usage else {}
        return {**self._head(), "choices": [_choice(index, text, finish_reason)], **usage}

    def _head(self) -> JsonObject:
        request = self._request
        return {"id": request.id, "object": "text_completion", "created": request.created, "model": request.model}


def _choice(index: int, text: str, finish_reason: str | None) -> JsonObject:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
