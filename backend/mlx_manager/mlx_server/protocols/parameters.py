"""Request parameters that the server does not use: refused by name, ignored, or logged as a warning."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from mlx_manager.mlx_server.errors import UnsupportedParameter

logger = logging.getLogger(__name__)

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "verbosity",
        "prediction",
        "messages[].annotations",
        "messages[].parsed",
        "messages[].provider_specific_fields",
        "messages[].content[].annotations",
        "messages[].content[].cache_control",
        "messages[].tool_calls[].index",
        "messages[].tool_calls[].function.parsed_arguments",
    }
)
"""Accepted and ignored: bookkeeping, speed-ups that do not change the answer, and fields of answers that clients
send back."""

RESOURCES = frozenset(
    {
        "f16_kv",
        "low_vram",
        "main_gpu",
        "num_batch",
        "num_ctx",
        "num_gpu",
        "num_gqa",
        "num_keep",
        "num_thread",
        "numa",
        "use_mlock",
        "use_mmap",
        "vocab_only",
    }
)
"""Ollama's memory and processor parameters, also sent by Open WebUI. Ignored with a warning in the log."""

REFUSED: Mapping[str, tuple[object, ...]] = {
    "adapters": (),
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": (),
    "draft_model": (),
    "dry_base": (),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "ebnf": (),
    "echo": (False,),
    "enable_thinking": (),
    "format": (),
    "function_call": ("none",),
    "functions": ([],),
    "grammar": (),
    "json_schema": (),
    "length_penalty": (1,),
    "lora": (),
    "max_completion_tokens": (),
    "max_new_tokens": (),
    "messages[].audio": (),
    "mirostat": (0,),
    "mirostat_eta": (),
    "mirostat_tau": (),
    "modalities": (["text"],),
    "moderation": (),
    "n_predict": (),
    "n_probs": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "options": ({},),
    "parallel_tool_calls": (True, False),
    "penalize_newline": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "reasoning": (),
    "reasoning_effort": ("none",),
    "regex": (),
    "repeat_last_n": (),
    "repetition_context_size": (),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "samplers": (),
    "spaces_between_special_tokens": (True,),
    "stop_regex": (),
    "stream_options.continuous_usage_stats": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "tfs_z": (1,),
    "thinking": (),
    "thinking_budget": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_a": (0,),
    "top_logprobs": (),
    "top_n_sigma": (),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "watermark": (False,),
    "web_search_options": (),
    "xtc_probability": (0,),
}
"""Known parameters that this server or one of its protocols does not support, with their no-op values."""

_PLACE = re.compile(r"\[\d+\]")


@dataclass(frozen=True, slots=True)
class ParameterTable:
    """How one family of protocols treats unused fields."""

    ignored: frozenset[str]
    refused: Mapping[str, tuple[object, ...]]


OPENAI = ParameterTable(IGNORED, REFUSED)


def check_unused(
    extra: Mapping[str, object] | None,
    reject_unknown: bool = False,
    where: str = "",
    table: ParameterTable = OPENAI,
) -> None:
    """Refuses known unsupported fields. Refuses unknown fields, or logs each name once.

    `where`: the path of the fields, for example `messages[3].`.
    """
    for field, value in (extra or {}).items():
        param = f"{where}{field}"
        name = _PLACE.sub("[]", param)
        if value is None or name in table.ignored:
            continue
        if name in RESOURCES:
            warn_once(name, "The server manages memory and processors itself.")
        elif name not in table.refused:
            if reject_unknown:
                raise UnsupportedParameter(
                    f"Unknown parameter {param[:200]!r}. Remove it, or unset MLX_SERVER_REJECT_UNKNOWN_FIELDS.",
                    param=param,
                )
            warn_once(name, "The field is unknown.")
        elif not any(_same(value, neutral) for neutral in table.refused[name]):
            raise UnsupportedParameter(
                f"The parameter {param!r} is not supported by this server. Remove it.", param=param
            )


def _same(value: object, neutral: object) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)  # 0 is not False here


@lru_cache(maxsize=1000)
def warn_once(name: str, reason: str) -> None:
    logger.warning("Ignoring the request field %r. %s", name[:200], reason)
