"""Detects the tokens that a model's chat template writes at the end of the assistant's turn."""

from jinja2 import TemplateError

from mlx_manager.mlx_server.errors import ChatTemplateFailed, ChatTemplateMissing
from mlx_manager.mlx_server.models.adapters.base import ModelAdapter
from mlx_manager.mlx_server.models.adapters.families import TURN_END_TOKENS
from mlx_manager.mlx_server.models.tokenization import Tokenizer
from mlx_manager.mlx_server.parsers.formats import OutputFormat

_QUESTION = {"role": "user", "content": "Which word?"}
_ANSWER = {"role": "assistant", "content": "Wordiness"}


def turn_end_tokens(tokenizer: Tokenizer, adapter: ModelAdapter, output_format: OutputFormat) -> list[int]:
    """Renders a short chat: call it in a thread. Empty where the template ends a turn with text or nothing."""
    added = {str(token): number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    if output_format.name == "harmony":  # its templates may write <|end|>, which also ends reasoning
        ends: tuple[str | None, ...] = TURN_END_TOKENS["gpt_oss"]
    else:
        ends = (_end_of_answer(tokenizer, adapter, list(added)),)
    return [added[end] for end in ends if end in added]


def _end_of_answer(tokenizer: Tokenizer, adapter: ModelAdapter, added: list[str]) -> str | None:
    """The token right after the answer, unless that token opens a turn."""
    try:
        asked = adapter.apply_chat_template(tokenizer, [_QUESTION], add_generation_prompt=False)
        opened = adapter.apply_chat_template(tokenizer, [_QUESTION], add_generation_prompt=True)
        answered = adapter.apply_chat_template(tokenizer, [_QUESTION, _ANSWER], add_generation_prompt=False)
    except (ChatTemplateMissing, ChatTemplateFailed):
        return None
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
    _, answer, rest = answered.rpartition(_ANSWER["content"])
    opening = opened.removeprefix(asked)
    follows = [token for token in added if answer and token.strip() and rest.lstrip().startswith(token)]
    end = max(follows, key=len, default=None)
    return end if end is not None and end not in opening else None
