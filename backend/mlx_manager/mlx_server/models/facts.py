"""Facts from a model's files, without a load: size, context length, quantisation, family, capabilities."""

import functools
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mlx_manager.mlx_server.engine.embedding.recipe import max_input_tokens
from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.models.adapters.output import PYTHON_TEMPLATES
from mlx_manager.mlx_server.models.adapters.registry import detect_model_family
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.chat_templates import TEMPLATE_FILES, read_chat_templates
from mlx_manager.mlx_server.models.defaults import changed_at, context_length, read_json
from mlx_manager.mlx_server.models.fitness import has_tokenizer, quantization_name
from mlx_manager.mlx_server.models.weights import weights_size
from mlx_manager.mlx_server.parsers.detect import detect_format

_TOOLS = re.compile(r"(?<![.\w'\"])tools\b(?!['\"])")
"""Matches the template variable `tools`, but not an attribute or key of that name."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """`tools` is False for a model that cannot chat."""

    chat: bool
    tools: Literal["native", "prompted", False]
    reasoning: bool
    structured_output: bool

    def with_tool_prompt(self, is_on: bool) -> "Capabilities":
        """The capabilities on a server whose setting tool_prompt is on or off."""
        return self if is_on or self.tools != "prompted" else replace(self, tools=False)


_NONE = Capabilities(chat=False, tools=False, reasoning=False, structured_output=False)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`size_bytes` is the size of the weights in memory."""

    size_bytes: int
    context_length: int | None
    quantization: str | None
    family: str
    capabilities: Capabilities


def read_facts(entry: ModelEntry) -> ModelFacts | None:
    """None for a model that is not on this machine. Reads files that have changed: call it in a thread."""
    folder = entry.local_folder()
    if folder is None:
        return None
    settings = entry.settings
    template = settings.chat_template if settings is not None else None
    files = [folder / name for name in ("config.json", "tokenizer.json", *TEMPLATE_FILES)]
    times = tuple(map(changed_at, (*files, template)))
    facts = _read_facts(entry.id, entry.kind_in(folder), folder, template, times)
    if settings is not None and settings.context_length is not None:
        return replace(facts, context_length=settings.context_length)
    return facts


@functools.lru_cache(maxsize=1000)
def _read_facts(
    model_id: str, kind: ModelKind, folder: Path, template: Path | None, changed_at: tuple[int, ...]
) -> ModelFacts:
    config = read_json(folder / "config.json")
    family = detect_model_family(model_id, folder) if kind == "generate" else str(config.get("model_type"))
    return ModelFacts(
        size_bytes=weights_size(folder).memory_bytes,
        context_length=context_length(config) if kind == "generate" else max_input_tokens(folder, config),
        quantization=quantization_name(config),
        family=family,
        capabilities=_capabilities(family, folder, template) if kind == "generate" else _NONE,
    )


def _capabilities(family: str, folder: Path, template: Path | None) -> Capabilities:
    config = read_json(folder / "tokenizer_config.json")
    in_python = str(config.get("chat_template_type", ""))
    text = PYTHON_TEMPLATES.get(in_python, "\n".join(read_chat_templates(folder, template).values()))
    output = detect_format(family, text, _added_tokens(folder), str(config.get("tool_parser_type")))
    can_chat = bool(text or in_python)
    return Capabilities(
        chat=can_chat,
        tools=_tools(text, output.name) if can_chat else False,
        reasoning=bool(text) and output.reasoning is not None,
        structured_output=has_tokenizer(folder),
    )


def _tools(template: str, output_format: str) -> Literal["native", "prompted"]:
    return "native" if _TOOLS.search(template) and output_format != "plain" else "prompted"


def _added_tokens(folder: Path) -> set[str]:
    """The added tokens of tokenizer.json, of which this parses only their list, and tokenizer_config.json."""
    try:
        text = (folder / "tokenizer.json").read_text("utf-8", errors="replace")
        listed, _ = json.JSONDecoder().raw_decode(text, text.index("[", text.index('"added_tokens"')))
    except (OSError, ValueError):
        listed = []
    named = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    tokens = [*listed, *(named.values() if isinstance(named, dict) else ())]
    return {str(token.get("content")) for token in tokens if isinstance(token, dict)}
