"""Models as Codex reads them in `GET /v1/models`, where OpenAI's own list has nothing that it needs. Pure.

Codex takes what it does not find here for that of OpenAI's largest models.
"""

from mlx_manager.mlx_server.schemas.models import CodexEffort, CodexModel, CodexTruncation, ModelInfo

BASE_INSTRUCTIONS = (
    "You are a coding agent that runs in a terminal on the user's machine. Work on the user's task in the current "
    "folder until it is done. Read files before you change them, and keep changes small. Be brief."
)
TRUNCATION_TOKENS = 10_000
"""Of a command's output that goes into the conversation, at most."""
_EFFORTS = {
    "low": "Short thoughts",
    "medium": "Thoughts of the model's own length",
    "high": "Long thoughts",
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
