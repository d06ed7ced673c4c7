"""Encodes a model for clients of OpenAI and Anthropic. Pure."""

from datetime import UTC, datetime
from typing import Literal

from mlx_manager.mlx_server.schemas.models import (
    ContextManagementSupport,
    EffortSupport,
    ModelCapabilities,
    ModelInfo,
    ServerToolsSupport,
    Support,
    ThinkingSupport,
    ThinkingTypes,
)

_CONTEXT_NAMES = ("max_input_tokens", "max_tokens", "context_window", "max_model_len", "max_output_tokens")
"""Of Anthropic (the first two), of OpenRouter's and Codex's clients, and of vLLM's."""
_YES, _NO = Support(supported=True), Support(supported=False)


def model_info(model_id: str, created: int, **facts: object) -> ModelInfo:
    """`created`: Unix seconds. `facts`: fields of `ModelInfo`."""
    moment = datetime.fromtimestamp(created, UTC)
    length = facts.get("context_length")
    sizes = dict.fromkeys(_CONTEXT_NAMES, length) | {"meta": None if length is None else {"n_ctx": length}}
    if facts.get("kind") in ("embed", "rerank"):
        sizes["max_output_tokens"] = None
    shared = {"display_name": model_id, "created_at": moment, **sizes}
    return ModelInfo.model_validate({"id": model_id, "created": created, **shared, **facts})


def capabilities(
    *, chat: bool, tools: Literal["native", "prompted", False], reasoning: bool, structured_output: bool
) -> ModelCapabilities:
    thinking = Support(supported=reasoning)
    return ModelCapabilities(
        chat=chat,
        tools=tools,
        reasoning=reasoning,
        structured_output=structured_output,
        batch=_NO,
        citations=_NO,
        code_execution=_NO,
        context_management=ContextManagementSupport(
            supported=True, clear_thinking_20251015=_YES, clear_tool_uses_20250919=_YES, compact_20260112=_NO
        ),
        effort=EffortSupport(
            supported=reasoning, low=thinking, medium=thinking, high=thinking, xhigh=thinking, max=thinking
        ),
        image_input=_NO,
        pdf_input=_NO,
        server_tools=ServerToolsSupport(supported=False, code_execution=_NO, web_search=_NO),
        structured_outputs=Support(supported=structured_output),
        thinking=ThinkingSupport(
            supported=reasoning,
            types=ThinkingTypes(adaptive=thinking, between_tools=thinking, disabled=_YES, enabled=thinking),
        ),
    )
