"""Builds the model descriptions that Codex reads from `GET /v1/models`. OpenAI's list does not contain them. Pure.

For fields that are missing here, Codex assumes the values of OpenAI's largest models.
"""

from mlx_manager.mlx_server.schemas.models import CodexEffort, CodexModel, CodexTruncation, ModelInfo

BASE_INSTRUCTIONS = (
    "You are a coding agent that runs in a terminal on the user's machine. Work on the user's task in the current "
    "folder until it is done. Read files before you change them, and keep changes small. Be brief."
)
TRUNCATION_TOKENS = 10_000
"""Limit for the output of one command in the conversation."""
_EFFORTS = {
    "low": "Short reasoning",
    "medium": "The model's default reasoning length",
    "high": "Long reasoning",
}


def codex_model(model: ModelInfo, priority: int) -> CodexModel:
    thinks = model.capabilities is not None and model.capabilities.reasoning
    window = model.context_length
    return CodexModel(
        slug=model.id,
        display_name=model.display_name if model.display_name is not None else model.id,
        description=f"{model.id}, served by {model.owned_by}",
        default_reasoning_level="medium" if thinks else None,
        supported_reasoning_levels=[
            CodexEffort(effort=effort, description=description) for effort, description in _EFFORTS.items() if thinks
        ],
        priority=priority,
        base_instructions=BASE_INSTRUCTIONS,
        truncation_policy=CodexTruncation(limit=min(TRUNCATION_TOKENS, window // 4) if window else TRUNCATION_TOKENS),
        context_window=window,
        max_context_window=window,
    )
