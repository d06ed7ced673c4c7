"""Completions (legacy): converts bodies to `CompletionRequest`, and events to chunks or one response. Pure."""

import time
import uuid
from typing import assert_never

from mlx_manager.mlx_server.errors import InvalidRequest
from mlx_manager.mlx_server.protocols.answer_format import completion_grammar
from mlx_manager.mlx_server.protocols.base import ParseOptions
from mlx_manager.mlx_server.protocols.logprobs import completion_logprobs
from mlx_manager.mlx_server.protocols.openai import ChunkProtocol, OpenAIWriter
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.wire import (
    JsonObject,
    keeps_off_disk,
    min_tokens,
    sampling_overrides,
    stop_strings,
    system_fingerprint,
    token_limit,
    usage_json,
    wants_usage,
)
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.types import (
    ChoiceFinished,
    Completed,
    CompletionRequest,
    Generation,
    GenerationEvent,
    Logprobs,
    Prefilled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)

DEFAULT_MAX_TOKENS = 16
"""The default of api.openai.com."""
MAX_CHOICES_IN_ALL = 1024
"""Limit for prompts x choices of one request."""


class Completions(ChunkProtocol[openai.CompletionRequest, CompletionRequest]):
    paths = ("/v1/completions",)

    def parse(self, body: openai.CompletionRequest, options: ParseOptions) -> CompletionRequest:
        return to_request(body, options.reject_unknown)

    def writer(self, request: CompletionRequest) -> "CompletionBuilder":
        return CompletionBuilder(request)


def to_request(body: openai.CompletionRequest, reject_unknown: bool = False) -> CompletionRequest:
    """Raises InvalidRequest and UnsupportedParameter, which name the field."""
    check_unused(body.model_extra, reject_unknown)
    _check_echo(body)
    prompts = _prompts(body.prompt)
    max_tokens = token_limit(num_predict=body.num_predict, max_tokens=body.max_tokens)
    n = body.n if body.n is not None else 1
    best_of = _best_of(body, n)
    if len(prompts) * best_of > MAX_CHOICES_IN_ALL:
        raise InvalidRequest(
            f"{len(prompts)} prompts x {best_of} choices exceed the limit of {MAX_CHOICES_IN_ALL}. Send fewer prompts.",
            param="prompt",
        )
    return CompletionRequest(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.model,
        sampling=sampling_overrides(body),
        max_tokens=max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        stop=stop_strings(body.stop),
        include_usage=wants_usage(body, reject_unknown),
        n=n,
        logprobs=body.logprobs,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        min_tokens=min_tokens(body, max_tokens),
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens is not False,
        grammar=completion_grammar(body),
        keep_alive_seconds=body.keep_alive,
        keep_off_disk=keeps_off_disk(body.prompt_cache_retention),
        prompts=prompts,
        echo=body.echo,
        suffix=body.suffix if body.suffix else None,  # some clients send "" for no suffix
        best_of=best_of,
    )


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    of_tokens = tuple(part for part in prompt if isinstance(part, int))
    if len(of_tokens) == len(prompt):
        return (of_tokens,)
    return tuple(part if isinstance(part, str) else tuple(part) for part in prompt if not isinstance(part, int))


def _check_echo(body: openai.CompletionRequest) -> None:
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens=0 requires echo=true. Set echo, or raise max_tokens.", param="max_tokens")
    if body.echo and body.suffix:
        raise InvalidRequest("echo and suffix are mutually exclusive. Remove one of them.", param="echo")


def _best_of(body: openai.CompletionRequest, n: int) -> int:
    best_of = body.best_of if body.best_of is not None else n
    if best_of < n:
        raise InvalidRequest(f"best_of={best_of} is less than n={n}. Set best_of to at least {n}.", param="best_of")
    if best_of > n and body.stream:
        raise InvalidRequest(
            f"best_of={best_of} with n={n} cannot be streamed, because choices are ranked at their end. Set stream to "
            "false, or remove best_of.",
            param="best_of",
        )
    return best_of


class CompletionBuilder(OpenAIWriter):
    def __init__(self, request: CompletionRequest) -> None:
        super().__init__()
        self._request = request

    def event(self, event: GenerationEvent) -> list[JsonObject]:
        match event:
            case Started() | Prefilled():
                return []
            case TextDelta(index, text, logprobs):
                return [self._chunk(index, text, logprobs)]
            case ReasoningDelta() | RefusalDelta() | ToolCallStarted() | ToolCallDelta():
                return []  # completions contain only text
            case ChoiceFinished(index, reason):
                return [self._chunk(index, "", (), reason)]
            case Completed(usage):
                if not self._request.include_usage:
                    return []
                return [{**self._head(), "choices": [], "usage": usage_json(usage)}]
            case _:
                assert_never(event)

    def response(self, generation: Generation) -> JsonObject:
        choices = [
            self._choice(choice.index, choice.text, self._logprobs(choice.logprobs), choice.finish_reason)
            for choice in generation.choices
        ]
        return {**self._head(), "choices": choices, "usage": usage_json(generation.usage)}

    def _chunk(self, index: int, text: str, logprobs: Logprobs, finish_reason: str | None = None) -> JsonObject:
        choice = self._choice(index, text, self._logprobs(logprobs) if logprobs else None, finish_reason)
        usage: JsonObject = {"usage": None} if self._request.include_usage else {}
        return {**self._head(), "choices": [choice], **usage}

    @staticmethod
    def _choice(index: int, text: str, logprobs: JsonObject | None, finish_reason: str | None) -> JsonObject:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, logprobs: Logprobs) -> JsonObject | None:
        return completion_logprobs(logprobs) if self._request.logprobs is not None else None

    def _head(self) -> JsonObject:
        request = self._request
        return {
            "id": request.id,
            "object": "text_completion",
            "created": request.created,
            "model": request.model,
            "system_fingerprint": system_fingerprint(request.model),
        }
