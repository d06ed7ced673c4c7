"""Conversions that several protocols share. Pure."""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache

import msgspec
from sse_starlette.event import ServerSentEvent

from mlx_manager.mlx_server import __version__
from mlx_manager.mlx_server.errors import InvalidRequest
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.schemas.openai import CacheRetention, GenerationBody
from mlx_manager.mlx_server.types import NO_TOKEN_LIMIT, SamplingOverrides, Usage

JsonObject = dict[str, object]
MAX_DEPTH = 100
"""Nesting limit for values that are encoded again; Python fails at some hundreds of levels."""


def json_text(value: object, param: str) -> str:
    """Encodes a parsed value as JSON. Raises InvalidRequest for `param` if the value is nested too deeply."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return json.dumps(value)
    raise InvalidRequest(f"{param} is nested more than {MAX_DEPTH} levels deep. Send fewer levels.", param=param)


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """Drops empty strings, which some clients send for no stop string."""
    given = [stop] if isinstance(stop, str) else stop or ()
    return tuple(text for text in given if text)


def keeps_off_disk(retention: CacheRetention | None) -> bool:
    """Whether `prompt_cache_retention` forbids the prefix cache on disk."""
    return retention in ("in_memory", "in-memory")


def token_limit(**limits: int | None) -> int | None:
    """The limit from several fields with the same meaning; another field overrides a "no limit" value.

    Raises InvalidRequest if two limits differ.
    """
    given = {name: limit for name, limit in limits.items() if limit is not None and limit != NO_TOKEN_LIMIT}
    if len(set(given.values())) > 1:
        said = " and ".join(f"{name}={limit}" for name, limit in given.items())
        raise InvalidRequest(f"{said} set the same limit to different values. Send one of them.", param=list(given)[-1])
    return next(iter(given.values()), NO_TOKEN_LIMIT if NO_TOKEN_LIMIT in limits.values() else None)


def sampling_overrides(body: GenerationBody) -> SamplingOverrides:
    return SamplingOverrides(
        seed=body.seed,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=0 if body.top_k == -1 else body.top_k,  # both mean all tokens
        min_p=body.min_p,
        repetition_penalty=_repetition_penalty(body),
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=body.logit_bias,
    )


def _repetition_penalty(body: GenerationBody) -> float | None:
    if body.repeat_penalty is None:
        return body.repetition_penalty
    if body.repetition_penalty not in (None, body.repeat_penalty):
        raise InvalidRequest(
            "repeat_penalty and repetition_penalty have the same meaning but differ. Send one of them.",
            param="repeat_penalty",
        )
    return body.repeat_penalty


def min_tokens(body: GenerationBody, max_tokens: int | None) -> int:
    least = body.min_tokens if body.min_tokens is not None else 0
    if max_tokens is not None and least > max_tokens:
        raise InvalidRequest(
            f"min_tokens={least} exceeds max_tokens={max_tokens}. Raise max_tokens, or send a smaller min_tokens.",
            param="min_tokens",
        )
    return least


def wants_usage(body: GenerationBody, reject_unknown: bool) -> bool:
    if body.stream_options is None:
        return False
    if not body.stream:
        raise InvalidRequest(
            "stream_options requires stream=true. Set stream, or remove stream_options.", param="stream_options"
        )
    check_unused(body.stream_options.model_extra, reject_unknown, "stream_options.")
    return body.stream_options.include_usage


def usage_json(usage: Usage) -> JsonObject:
    """`cache_miss` is an extension: it is there if the prefix cache missed tokens of the prompt."""
    details: JsonObject = {"cached_tokens": usage.cached_tokens}
    if usage.miss is not None and usage.miss.missed_tokens:
        details["cache_miss"] = {"reason": usage.miss.reason, "missed_tokens": usage.miss.missed_tokens}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def event_frame(message: JsonObject) -> bytes:
    """A server-sent event named by the message's type."""
    return data_frame(message, str(message["type"]))


def data_frame(message: JsonObject, name: str | None = None) -> bytes:
    """A server-sent event with JSON data."""
    return ServerSentEvent(msgspec.json.encode(message).decode(), event=name, sep="\n").encode()


def reasoning_kwargs(effort: str | None) -> dict[str, object]:
    """Template arguments: the effort, and the `enable_thinking` switch that most templates use instead."""
    return {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}


@lru_cache(maxsize=100)
def system_fingerprint(model: str) -> str:
    """Identifies server version and model: within one value, equal seeds give equal answers."""
    return f"fp_{hashlib.sha256(f'{__version__} {model}'.encode()).hexdigest()[:10]}"
