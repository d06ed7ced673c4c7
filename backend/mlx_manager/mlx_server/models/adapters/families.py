"""Families with additional tokens that end a turn, and Mistral's tool call ids. Knows no engine."""

import hashlib
import re
from typing import Any

from mlx_manager.mlx_server.models.adapters.base import DefaultAdapter, unique_ids
from mlx_manager.mlx_server.models.adapters.tool_messages import with_call_ids
from mlx_manager.mlx_server.models.tokenization import Tokenizer

TURN_END_TOKENS = {
    "qwen": ("<|im_end|>", "<|endoftext|>"),
    "gemma": ("<end_of_turn>", "<turn|>", "<start_function_response>"),
    "phi": ("<|end|>", "<|im_end|>"),
    "glm": ("<|user|>", "<|observation|>", "<|endoftext|>"),
    "gpt_oss": ("<|return|>", "<|call|>"),
}
"""Tokens that end a turn, including turns that wait for a tool's result."""


class FamilyAdapter(DefaultAdapter):
    """Also stops at those `turn_end_tokens` that the vocabulary contains."""

    def __init__(self, family: str, turn_end_tokens: tuple[str, ...]) -> None:
        self.family = family
        self._turn_end_tokens = turn_end_tokens

    def get_stop_tokens(self, tokenizer: Tokenizer) -> list[int]:
        unknown = getattr(tokenizer, "unk_token_id", None)
        turn_ends = (tokenizer.convert_tokens_to_ids(token) for token in self._turn_end_tokens)
        known = [token for token in turn_ends if token is not None and token != unknown]
        return unique_ids([*super().get_stop_tokens(tokenizer), *known])


class MistralAdapter(DefaultAdapter):
    """Converts tool call ids to nine letters and digits, the only form that Mistral's templates accept."""

    family = "mistral"

    def apply_chat_template(
        self,
        tokenizer: Tokenizer,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        messages = with_call_ids(messages, _mistral_id)
        return super().apply_chat_template(tokenizer, messages, add_generation_prompt, **template_kwargs)


def _mistral_id(call_id: str) -> str:
    if re.fullmatch(r"[a-zA-Z0-9]{9}", call_id):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]
