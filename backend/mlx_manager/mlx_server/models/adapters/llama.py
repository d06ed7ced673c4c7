"""The adapter for the Llama family, with its additional tokens that end a turn."""

from mlx_manager.mlx_server.models.adapters.families import FamilyAdapter
from mlx_manager.mlx_server.models.tokenization import Tokenizer

TURN_END_TOKENS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_turn|>", "<|eot|>", "<|eom|>")
"""End of a turn, end of a message with a tool call, a variant of fine-tunes, and Llama 4's names for the first two."""


class LlamaAdapter(FamilyAdapter):
    def __init__(self) -> None:
        super().__init__("llama", TURN_END_TOKENS)

    def is_stop_token(self, token_id: int, tokenizer: Tokenizer) -> bool:
        return token_id in self.get_stop_tokens(tokenizer)
