"""The output format of a model: how it writes reasoning and tool calls. Does not parse output.

An adapter may define it with `output_format`. Otherwise it is detected from the chat template.
"""

from typing import Protocol, runtime_checkable

from mlx_manager.mlx_server.models.adapters.base import ModelAdapter
from mlx_manager.mlx_server.models.tokenization import Tokenizer
from mlx_manager.mlx_server.parsers.detect import detect_format
from mlx_manager.mlx_server.parsers.formats import OutputFormat

PYTHON_TEMPLATES = {"deepseek_v32": "<｜DSML｜function_calls> <think> </think>"}
"""The markers that mlx-lm's Python chat templates write, by template name."""


@runtime_checkable
class FormatsOutput(Protocol):
    """Optional method of an adapter."""

    def output_format(self, tokenizer: Tokenizer) -> OutputFormat: ...


def get_output_format(adapter: ModelAdapter, tokenizer: Tokenizer) -> OutputFormat:
    if isinstance(adapter, FormatsOutput):
        return adapter.output_format(tokenizer)
    mlx_lm_parser = tokenizer.init_kwargs.get("tool_parser_type")
    return detect_format(adapter.family, _template_text(tokenizer), tokenizer.get_vocab(), mlx_lm_parser)


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The special tokens of the vocabulary, with their ids."""
    return {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}


def _template_text(tokenizer: Tokenizer) -> str:
    template = tokenizer.chat_template
    if tokenizer.python_template is not None:
        return PYTHON_TEMPLATES.get(tokenizer.python_template, "")
    return "\n".join(template.values()) if isinstance(template, dict) else template if template is not None else ""
