"""Small pieces that OpenAI's protocols share on the wire."""

from mlx_manager.mlx_server.protocols.parameters import warn_once
from mlx_manager.mlx_server.schemas.openai import GenerationBody, StreamOptions
from mlx_manager.mlx_server.types import SamplingOverrides, Usage

JsonObject = dict[str, object]


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def sampling_overrides(body: GenerationBody) -> SamplingOverrides:
    return SamplingOverrides(
        seed=body.seed,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=0 if body.top_k == -1 else body.top_k,  # both mean all tokens
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=body.logit_bias,
    )


def wants_usage(options: StreamOptions | None) -> bool:
    if options is None:
        return False
    for name in options.model_extra or {}:
        warn_once(f"stream_options.{name}")
    return options.include_usage


def usage_json(usage: Usage) -> JsonObject:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
