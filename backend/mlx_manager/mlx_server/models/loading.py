"""Loads generative models: weights in a worker process, tokenizer and adapter in this one."""

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path

from mlx_manager.mlx_server.engine.client import EngineClient
from mlx_manager.mlx_server.engine.group_client import RankedEngineClient
from mlx_manager.mlx_server.models.adapters import ModelAdapter, get_adapter
from mlx_manager.mlx_server.models.adapters.output import get_output_format, special_tokens
from mlx_manager.mlx_server.models.adapters.traits import TemplateTraits, probe_template
from mlx_manager.mlx_server.models.adapters.turn_ends import turn_end_tokens
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.chat_templates import read_chat_templates
from mlx_manager.mlx_server.models.conversion import tokenizer_folder
from mlx_manager.mlx_server.models.defaults import ModelDefaults, read_defaults, with_settings
from mlx_manager.mlx_server.models.resident import Loading, Resident
from mlx_manager.mlx_server.models.token_texts import PlainTexts
from mlx_manager.mlx_server.models.tokenization import Tokenizer, load_tokenizer
from mlx_manager.mlx_server.parsers.detect import prompted_format
from mlx_manager.mlx_server.parsers.formats import OutputFormat
from mlx_manager.mlx_server.templates.rendering import TemplateRenderer

logger = logging.getLogger(__name__)

MAX_RENDERING = 2
"""Prompts of one model that are rendered at the same time."""


@dataclass(frozen=True, slots=True)
class Language:
    """A model's tokenizer, chat template and output format."""

    tokenizer: Tokenizer
    adapter: ModelAdapter
    output_format: OutputFormat
    special_tokens: dict[str, int]
    turn_ends: list[int]
    """The tokens that end the assistant's turn in its chat template."""
    plain_texts: PlainTexts
    templates: TemplateRenderer
    traits: TemplateTraits
    rendering: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_RENDERING))
    """Keeps a model with a slow template from delaying other models."""


@dataclass(slots=True, kw_only=True)
class LoadedModel(Resident):
    """A loaded generative model."""

    kind = "generate"

    language: Language
    engine: EngineClient
    defaults: ModelDefaults
    stop_tokens: list[int]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.language.tokenizer

    @property
    def adapter(self) -> ModelAdapter:
        return self.language.adapter

    @property
    def output_format(self) -> OutputFormat:
        return self.language.output_format


async def load_generator(load: Loading) -> LoadedModel:
    entry, folder = load.entry, load.folder
    client = EngineClient if load.launch.membership is None else RankedEngineClient
    engine, language = await load.start(client, lambda: _load_language(entry, folder, load.templates))
    try:
        defaults = read_defaults(folder)
        if entry.settings is not None:
            defaults = with_settings(defaults, entry.settings)
        own_stop_tokens = language.adapter.get_stop_tokens(language.tokenizer)
        return LoadedModel(
            model_id=entry.id,
            language=language,
            engine=engine,
            defaults=defaults,
            stop_tokens=list(dict.fromkeys([*own_stop_tokens, *language.turn_ends, *defaults.eos_token_ids])),
            weights_bytes=engine.stats.active_bytes,
            keep_alive_seconds=load.keep_alive_seconds,
        )
    except BaseException:
        await engine.close()
        raise


def _load_language(entry: ModelEntry, folder: Path, templates: TemplateRenderer) -> Language:
    """Reads the files and renders probe chats. Blocks: call it in a thread."""
    own = entry.settings.chat_template if entry.settings is not None else None
    chat_templates = read_chat_templates(folder, own)
    files = tokenizer_folder(folder, trust_remote_code=entry.trust_remote_code)
    tokenizer = load_tokenizer(files, chat_templates=chat_templates, render=templates.render)
    adapter = get_adapter(entry.id, folder)
    output_format = get_output_format(adapter, tokenizer)
    traits, fault = probe_template(tokenizer, adapter, output_format)
    if not traits.native_tools:
        output_format = prompted_format(output_format)
        logger.info("Model %s gets its tools in a prompt: %s", entry.id, fault)
    elif fault is not None:
        logger.warning("Tool calls of model %s may fail: %s", entry.id, fault)
    turn_ends = turn_end_tokens(tokenizer, adapter, output_format)
    return Language(
        tokenizer,
        adapter,
        output_format,
        special_tokens(tokenizer),
        turn_ends,
        PlainTexts(tokenizer),
        templates,
        traits,
    )
