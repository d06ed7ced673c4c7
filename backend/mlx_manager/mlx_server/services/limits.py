"""Resolves the engine's parameters from the request, the model's files and OpenAI's defaults, and checks them."""

import secrets
from dataclasses import fields, replace
from typing import Any

from mlx_manager.mlx_server.errors import ContextLengthExceeded, InvalidRequest
from mlx_manager.mlx_server.models.pool import LoadedModel
from mlx_manager.mlx_server.types import GenerationRequest, SamplingOverrides, SamplingParams


def resolve_sampling(model: LoadedModel, request: GenerationRequest) -> SamplingParams:
    """Values of the request, else of the model's generation_config, else OpenAI's defaults; the default seed is random.

    Raises InvalidRequest for token ids and counts beyond the model's vocabulary.
    """
    vocabulary_size = model.engine.vocabulary_size
    model_defaults = replace(SamplingParams(seed=secrets.randbits(64)), **_set_values(model.defaults.sampling))
    model_defaults = replace(model_defaults, top_k=min(model_defaults.top_k, vocabulary_size))
    params = replace(model_defaults, **_set_values(request.sampling))
    if params.top_k > vocabulary_size:
        raise InvalidRequest(
            f"top_k is {params.top_k}, but the model's vocabulary has {vocabulary_size} tokens. Lower top_k.",
            param="top_k",
        )
    unknown = [token for token in params.logit_bias if not 0 <= token < vocabulary_size]
    if unknown:
        raise InvalidRequest(
            f"logit_bias has token id {unknown[0]}, but the model's largest is {vocabulary_size - 1}. Remove it.",
            param="logit_bias",
        )
    return params


def resolve_max_tokens(model: LoadedModel, request: GenerationRequest, prompt_tokens: int) -> int:
    """The limit of the request, else of the model, else the default; cut to what context and memory have left.

    At least 1: the engine samples a token even for max_tokens=0. Raises ContextLengthExceeded if the prompt leaves no
    room for a single token: in the context, if the request asks for one, or in memory.
    """
    limits = (request.max_tokens, model.defaults.max_tokens, request.default_max_tokens)
    max_tokens = next(limit for limit in limits if limit is not None)
    context_length = model.defaults.context_length
    if context_length is not None:
        if prompt_tokens + min(max_tokens, 1) > context_length:
            raise ContextLengthExceeded(
                # Agents compact the conversation where they find "this model's maximum context length is N tokens".
                f"The prompt has {prompt_tokens} tokens for model {model.model_id!r}, and this model's maximum context "
                f"length is {context_length} tokens for prompt and answer together. Shorten the prompt.",
                param=request.prompt_field,
                tokens=prompt_tokens,
                limit=context_length,
            )
        max_tokens = min(max_tokens, context_length - prompt_tokens)
    return _within_memory(model, request, prompt_tokens, max(1, max_tokens))


def _within_memory(model: LoadedModel, request: GenerationRequest, prompt_tokens: int, max_tokens: int) -> int:
    fits = model.engine.largest_sequence_tokens
    if prompt_tokens + 1 <= fits:
        return min(max_tokens, fits - prompt_tokens)
    raise ContextLengthExceeded(
        f"The prompt has {prompt_tokens} tokens for model {model.model_id!r}, and this model's maximum context length "
        f"is {fits} tokens in the memory of this server, at {model.engine.kv_bytes_per_token} bytes of KV cache for "
        "each. Shorten the prompt, or raise MLX_SERVER_MAX_MEMORY_GB.",
        param=request.prompt_field,
        tokens=prompt_tokens,
        limit=fits,
    )


def resolve_stop_tokens(model: LoadedModel, request: GenerationRequest) -> list[int]:
    """Stop tokens of the model, unless ignore_eos, and of the request. Raises InvalidRequest for unknown ids."""
    size = model.engine.vocabulary_size
    unknown = [token for token in request.stop_token_ids if not 0 <= token < size]
    if unknown:
        raise InvalidRequest(
            f"stop_token_ids has {unknown[0]}, but the model's largest token id is {size - 1}. Remove it.",
            param="stop_token_ids",
        )
    own = [] if request.ignore_eos else [token for token in model.stop_tokens if 0 <= token < size]
    return [*own, *request.stop_token_ids]


def _set_values(overrides: SamplingOverrides) -> dict[str, Any]:
    values = {field.name: getattr(overrides, field.name) for field in fields(overrides)}
    return {name: value for name, value in values.items() if value is not None}
