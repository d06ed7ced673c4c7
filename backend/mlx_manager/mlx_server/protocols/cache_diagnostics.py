"""Encodes why a prompt missed the prefix cache, compared with an earlier answer that the request names. Pure.

A reason that a protocol has no name for is `unavailable` there.
"""

from collections.abc import Mapping

from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.records import Miss, MissReason
from mlx_manager.mlx_server.types import Usage

_ANTHROPIC: Mapping[MissReason, str] = {
    "model": "model_changed",
    "adapter": "model_changed",
    "system": "system_changed",
    "tools": "tools_changed",
    "messages": "messages_changed",
}
_OPENAI: Mapping[MissReason, str] = {
    "model": "model_changed",
    "adapter": "model_changed",
    "system": "input_changed",
    "tools": "tools_changed",
    "messages": "input_changed",
}
"""Instructions are part of the input."""
_UNAVAILABLE: JsonObject = {"type": "unavailable"}


def messages_diagnostics(usage: Usage) -> JsonObject | None:
    """Anthropic's `diagnostics`. None if nothing of the earlier prompt was missed."""
    if usage.compared is False:
        return {"cache_miss_reason": {"type": "previous_message_not_found"}}
    if usage.compared and usage.miss is None:
        return None
    kind = _changed(usage.miss, _ANTHROPIC)
    if usage.miss is None or kind is None:
        return {"cache_miss_reason": _UNAVAILABLE}
    return {"cache_miss_reason": {"type": kind, "cache_missed_input_tokens": usage.miss.missed_tokens}}


def responses_diagnostics(usage: Usage) -> JsonObject:
    """OpenAI's `prompt_cache_diagnostics`."""
    if usage.compared is False:
        return {"type": "comparison_response_not_found"}
    if usage.compared and usage.miss is None:
        return {"type": "cache_hit"}
    reason = _changed(usage.miss, _OPENAI)
    if usage.miss is not None and usage.miss.changed_by == "parameters":
        reason = "reasoning_effort_changed"
    if usage.miss is None or reason is None:
        return _UNAVAILABLE
    return {
        "type": "cache_miss",
        "reason": reason,
        "cache_missed_tokens": usage.miss.missed_tokens,
        "comparison_reusable_tokens": usage.miss.reusable_tokens,
    }


def _changed(miss: Miss | None, names: Mapping[MissReason, str]) -> str | None:
    """The name of the part that the client changed."""
    return names.get(miss.reason) if miss is not None and miss.changed_by == "request" else None
