"""Says why a sequence cannot be generated. Knows the model's facts, and no other sequences."""

from mlx_manager.mlx_server.engine.messages import RequestFailed, Submit
from mlx_manager.mlx_server.types import Thinking


def refusal(message: Submit, vocabulary_size: int, largest_sequence_tokens: int) -> RequestFailed | None:
    fault = _fault(message, vocabulary_size, largest_sequence_tokens)
    if fault is not None:
        return RequestFailed(message.sequence, fault, invalid=True)
    if message.thinking is not None and not _knows(message.thinking, vocabulary_size):
        return RequestFailed(
            message.sequence,
            f"the model's thinking tokens are outside its vocabulary of {vocabulary_size} tokens",
        )
    return None


def _fault(message: Submit, vocabulary: int, largest: int) -> str | None:
    """Why the sequence must not reach MLX, which does not check token ids."""
    prompt = message.prompt_tokens
    if not prompt:
        return "The prompt has no tokens. Send at least one."
    if max(prompt) >= vocabulary or min(prompt) < 0:
        wrong = min(prompt) if min(prompt) < 0 else max(prompt)
        return f"The prompt has token id {wrong}. Send ids from 0 to {vocabulary - 1}, the model's vocabulary."
    if message.max_tokens < 1:
        return f"max_tokens is {message.max_tokens}. Send 1 or more."
    if len(prompt) + message.max_tokens > largest:
        return (
            f"The request needs {len(prompt) + message.max_tokens} tokens (prompt {len(prompt)} + completion "
            f"{message.max_tokens}), but only {largest} fit in memory now. Reduce max_tokens or the prompt, or "
            "raise MLX_SERVER_MAX_MEMORY_GB."
        )
    return None


def _knows(thinking: Thinking, vocabulary_size: int) -> bool:
    marks = (thinking.open_token, thinking.again_token, *thinking.close_tokens)
    tokens = [token for token in marks if token is not None]
    return bool(thinking.close_tokens) and all(0 <= token < vocabulary_size for token in tokens)
