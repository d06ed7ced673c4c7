"""Request parameters that are not used: refused by name, knowingly ignored, or warned of."""

import logging
from collections.abc import Mapping
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
        "prompt_cache_retention",
        "verbosity",
        "prediction",
    }
)
"""Accepted and without effect here: they ask for bookkeeping, or for speed-ups that change no answer."""

REFUSED: Mapping[str, tuple[object, ...]] = {
    "adapters": (),
    "add_generation_prompt": (True,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": (),
    "draft_model": (),
    "dry_multiplier": (0,),
    "echo": (False,),
    "enable_thinking": (),
    "function_call": ("none",),
    "functions": ([],),
    "grammar": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "json_schema": (),
    "keep_alive": (),
    "length_penalty": (1,),
    "logprobs": (False,),
    "max_completion_tokens": (),
    "min_tokens": (0,),
    "mirostat": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "num_ctx": (),
    "parallel_tool_calls": (True, False),
    "prompt_logprobs": (),
    "reasoning": (),
    "reasoning_effort": ("none",),
    "repeat_penalty": (1,),
    "repetition_context_size": (),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "suffix": ("",),
    "thinking": (),
    "thinking_budget": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_a": (0,),
    "top_logprobs": (),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "web_search_options": (),
    "xtc_probability": (0,),
}
"""Known parameters that this server does not have, each with the values that ask for nothing."""


def check_unused(extra: Mapping[str, object] | None) -> None:
    """Refuses what is known and not there; a field that nobody knows is warned of once per name."""
    for name, value in (extra or {}).items():
        if value is None or name in IGNORED:
            continue
        if name not in REFUSED:
            warn_once(name)
        elif not any(_same(value, neutral) for neutral in REFUSED[name]):
            raise UnsupportedParameter(
                f"The parameter {name!r} is not supported by this server: leave it out.", param=name
            )


def _same(value: object, neutral: object) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)  # 0 is no False here


@lru_cache(maxsize=1000)
def warn_once(name: str) -> None:
    logger.warning("Ignoring the unknown request field %r", name)
