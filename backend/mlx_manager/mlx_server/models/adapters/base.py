"""The adapter protocol for model families: chat templates and stop tokens. Knows no engine."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from jinja2 import TemplateError

from mlx_manager.mlx_server.errors import ChatTemplateMissing
from mlx_manager.mlx_server.models.adapters.tool_messages import with_arguments_as_objects, with_arguments_as_text
from mlx_manager.mlx_server.models.tokenization import Tokenizer

TEMPLATE_FAILURES = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Exceptions that `apply_chat_template` raises for messages that the template does not accept."""


@runtime_checkable
class ModelAdapter(Protocol):
    """Adapts one model family. Register an implementation with `register_adapter`."""

    @property
    def family(self) -> str: ...

    def apply_chat_template(
        self,
        tokenizer: Tokenizer,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The prompt's text, with special tokens as text. Raises ChatTemplateMissing.

        `messages` have OpenAI's form, so the arguments of tool calls are JSON text.
        """
        ...

    def get_stop_tokens(self, tokenizer: Tokenizer) -> list[int]:
        """Token ids that end the assistant's turn, each once."""
        ...


class DefaultAdapter:
    """Uses the chat template and the end-of-sequence tokens of the model's tokenizer."""

    family = "default"

    def apply_chat_template(
        self,
        tokenizer: Tokenizer,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        if not getattr(tokenizer, "has_chat_template", True):
            raise ChatTemplateMissing(
                "The model has no chat template, so it cannot chat. Use /v1/completions, or an instruct model.",
                param="model",
            )
        options = {"tokenize": False, "add_generation_prompt": add_generation_prompt, **template_kwargs}
        try:
            return str(tokenizer.apply_chat_template(with_arguments_as_objects(messages), **options))
        except TypeError:  # the templates of DeepSeek V3 and R1 concatenate the arguments as text
            return str(tokenizer.apply_chat_template(with_arguments_as_text(messages), **options))

    def get_stop_tokens(self, tokenizer: Tokenizer) -> list[int]:
        return unique_ids([getattr(tokenizer, "eos_token_id", None), *_eos_token_ids(tokenizer)])


def _eos_token_ids(tokenizer: Tokenizer) -> list[Any]:
    """Sorted. Empty for tokenizers without this attribute."""
    ids = getattr(tokenizer, "eos_token_ids", None)
    return sorted(ids) if isinstance(ids, set | frozenset | list | tuple) else []


def unique_ids(candidates: Iterable[Any]) -> list[int]:
    """The token ids among `candidates`, in order, each once. A candidate may be None or a list."""
    flat = (token for c in candidates for token in (c if isinstance(c, list | tuple) else [c]))
    return list(dict.fromkeys(token for token in flat if isinstance(token, int)))
