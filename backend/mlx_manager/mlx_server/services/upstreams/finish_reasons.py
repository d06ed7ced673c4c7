"""Maps the finish reasons of upstreams to OpenAI's."""

from typing import Literal

from mlx_manager.mlx_server.types import FinishReason

_NO_END = {"", "none", "null", "unspecified", "finish_reason_unspecified", "not_finished", "in_progress"}
_REASONS: dict[str, FinishReason] = {
    **dict.fromkeys(
        (
            *("stop", "stopped", "stop_sequence", "stop_string", "stop_str", "stop_token", "stop_word"),
            *("eos", "eos_token", "eot", "end", "end_turn", "end_of_turn", "end_of_text", "end_of_sequence"),
            *("complete", "completed", "done", "finish", "finished"),
        ),
        "stop",
    ),
    **dict.fromkeys(
        (
            *("length", "length_limit", "limit", "max_length", "max_tokens", "max_tokens_reached", "max_new_tokens"),
            *("max_output_tokens", "max_completion_tokens", "token_limit", "truncated"),
            *("model_length", "context_length", "context_window", "model_context_window_exceeded"),
        ),
        "length",
    ),
    **dict.fromkeys(
        ("tool_calls", "tool_call", "tool_use", "tools", "tool", "function_call", "function_calls"), "tool_calls"
    ),
    **dict.fromkeys(
        (
            *("content_filter", "content_filtered", "content_policy", "filter", "filtered", "moderation", "sensitive"),
            *("safety", "image_safety", "prohibited_content", "blocklist", "spii", "recitation", "language"),
            *("guardrail_intervened", "guardrail", "refusal"),
        ),
        "content_filter",
    ),
}
"""The names of OpenAI, Anthropic, Google, Mistral, Cohere, Amazon, Zhipu and the servers of open models."""


def read_finish_reason(reason: object) -> FinishReason | Literal["broken"] | None:
    """None if the choice continues; "broken" if the upstream aborted it, or for an unknown reason.

    An unknown reason counts as broken, so that a possibly incomplete answer never passes for a complete one.
    """
    if reason is None or reason is False:
        return None
    name = str(reason).strip().lower().rpartition(".")[2].replace("-", "_").replace(" ", "_")
    if name in _NO_END:
        return None
    return _REASONS.get(name.removeprefix("finish_reason_"), "broken")
