"""The Llama family, whose turns end with tokens of their own beside the tokenizer's end of sequence."""

from mlx_manager.mlx_server.models.adapters.base import DefaultAdapter, unique_ids
from mlx_manager.mlx_server.models.tokenization import Tokenizer

TURN_END_TOKENS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_turn|>")
"""End of a turn, end of a message that calls a tool, and what some fine-tunes write instead."""


class LlamaAdapter(DefaultAdapter):
    family = "llama"

    def get_stop_tokens(self, tokenizer: Tokenizer) -> list[int]:
        unknown = getattr(tokenizer, "unk_token_id", None)
        turn_ends = (tokenizer.convert_tokens_to_ids(token) for token in TURN_END_TOKENS)
        known = [token for token in turn_ends if token is not None and token != unknown]
        return unique_ids([*super().get_stop_tokens(tokenizer), *known])

    def is_stop_token(self, token_id: int, tokenizer: Tokenizer) -> bool:
        return token_id in self.get_stop_tokens(tokenizer)
