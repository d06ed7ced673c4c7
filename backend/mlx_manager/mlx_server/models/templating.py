"""A tokenizer whose chat template, which is a program of whoever made the model, is rendered in a process apart."""

from typing import Any

from mlx_manager.mlx_server.models.tokenization import Tokenizer
from mlx_manager.mlx_server.templates.rendering import TemplateRenderer


def render_apart(tokenizer: Tokenizer, templates: TemplateRenderer) -> Tokenizer:
    """The tokenizer, changed where a template that the model brings would be rendered in this process.

    It is not where mlx-lm, transformers or trusted code of the model's writes prompts in Python.
    """
    from transformers import PreTrainedTokenizerBase

    inner = tokenizer._tokenizer
    if type(inner).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template:
        tokenizer._tokenizer = _RenderingApart(inner, templates)
    return tokenizer


class _RenderingApart:
    """Stands in for a transformers tokenizer, and is it in all but `apply_chat_template`, which blocks."""

    __slots__ = ("_templates", "_tokenizer")

    def __init__(self, tokenizer: Any, templates: TemplateRenderer) -> None:
        object.__setattr__(self, "_tokenizer", tokenizer)
        object.__setattr__(self, "_templates", templates)

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        """The prompt of one conversation, as transformers gives it."""
        text = self._templates.render(
            self._tokenizer.get_chat_template(chat_template, tools),
            conversation,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self._tokenizer.special_tokens_map, **variables},
        )
        if not tokenize:
            return text
        encoding = self._tokenizer(text, add_special_tokens=False)
        return encoding if return_dict else encoding["input_ids"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._tokenizer, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tokenizer(*args, **kwargs)

    def __len__(self) -> int:
        return len(self._tokenizer)
