"""A model's files become a model that can generate: its weights in a worker process, its tokenizer and adapter here."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_manager.mlx_server.engine.client import EngineClient, LoadRaised
from mlx_manager.mlx_server.engine.launch import EngineOptions
from mlx_manager.mlx_server.engine.messages import Device, Limits
from mlx_manager.mlx_server.engine.watchdog import Patience
from mlx_manager.mlx_server.errors import LoadingCrashed, ModelLoadFailed
from mlx_manager.mlx_server.models.adapters import ModelAdapter, get_adapter
from mlx_manager.mlx_server.models.adapters.output import get_output_format, special_tokens
from mlx_manager.mlx_server.models.adapters.traits import TemplateTraits, probe_template
from mlx_manager.mlx_server.models.adapters.turn_ends import turn_end_tokens
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.chat_templates import read_chat_templates
from mlx_manager.mlx_server.models.defaults import ModelDefaults, read_defaults, with_settings
from mlx_manager.mlx_server.models.fitness import explain, explain_tokenizer, why_it_cannot_load
from mlx_manager.mlx_server.models.hub import Progress
from mlx_manager.mlx_server.models.templating import render_apart
from mlx_manager.mlx_server.models.token_texts import PlainTexts
from mlx_manager.mlx_server.models.tokenization import Tokenizer, load_tokenizer
from mlx_manager.mlx_server.models.weights import weights_size
from mlx_manager.mlx_server.parsers.detect import prompted_format
from mlx_manager.mlx_server.parsers.formats import OutputFormat
from mlx_manager.mlx_server.templates.rendering import TemplateRenderer
from mlx_manager.mlx_server.utils.memory import BYTES_PER_GB

logger = logging.getLogger(__name__)

TELL_SECONDS = 5.0
MAX_RENDERING = 2
"""Prompts of one model that its template is rendered for at a time."""


@dataclass(frozen=True, slots=True)
class Language:
    """What a model reads and writes: its tokenizer, and how its prompts and its output are written."""

    tokenizer: Tokenizer
    adapter: ModelAdapter
    output_format: OutputFormat
    special_tokens: dict[str, int]
    turn_ends: list[int]
    """Tokens with which its chat template ends the assistant's turn."""
    plain_texts: PlainTexts
    templates: TemplateRenderer
    traits: TemplateTraits
    rendering: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_RENDERING))
    """So that a model whose template takes long holds up no other."""


@dataclass(slots=True, kw_only=True)
class LoadedModel:
    """A model that can generate. Times are Unix seconds.

    `weights_bytes` is what its worker held once it was loaded; it stays for `keep_alive_seconds` when it is idle, and
    for ever when that is negative.
    """

    model_id: str
    language: Language
    engine: EngineClient
    defaults: ModelDefaults
    stop_tokens: list[int]
    weights_bytes: int
    keep_alive_seconds: float
    loaded_at: float = field(default_factory=time.time)
    last_used: float = field(default_factory=time.time)

    @property
    def size_gb(self) -> float:
        return self.weights_bytes / BYTES_PER_GB

    @property
    def tokenizer(self) -> Tokenizer:
        return self.language.tokenizer

    @property
    def adapter(self) -> ModelAdapter:
        return self.language.adapter

    @property
    def output_format(self) -> OutputFormat:
        return self.language.output_format

    def touch(self) -> None:
        self.last_used = time.time()


def estimate_bytes(entry: ModelEntry, folder: Path) -> int:
    """What the weights will take in the worker. Raises ModelLoadFailed for a model that cannot be loaded.

    Reads files: call it in a thread.
    """
    reason = why_it_cannot_load(folder, entry.trust_remote_code, entry.adapter)
    if reason is not None:
        raise _load_failed(entry, reason)
    return weights_size(folder).memory_bytes


def worker_options(all_workers: EngineOptions, share: Limits, entry: ModelEntry) -> EngineOptions:
    """With this model's share of what all workers have, and what is its own."""
    return replace(
        all_workers,
        memory_limit_bytes=share.memory_bytes,
        buffer_limit_bytes=share.buffer_bytes,
        prefix_cache_bytes=share.prefix_cache_bytes,
        adapter=entry.adapter,
        trust_remote_code=entry.trust_remote_code,
    )


async def load_model(
    entry: ModelEntry,
    folder: Path,
    options: EngineOptions,
    patience: Patience,
    keep_alive_seconds: float,
    progress: Progress,
    templates: TemplateRenderer,
    on_death: Callable[[EngineClient], None],
    on_device: Callable[[Device], None],
) -> LoadedModel:
    """Raises ModelLoadFailed, or what `on_device` raises. `on_death` is called when a loaded model's worker dies."""

    def on_progress(loaded_bytes: int) -> None:
        progress.done_bytes = min(loaded_bytes, progress.total_bytes)

    progress.stage = "loading"
    launching = asyncio.create_task(
        EngineClient.launch(entry.id, folder, options, patience, on_death, on_progress, on_device)
    )
    try:
        language = await asyncio.to_thread(_load_language, entry, folder, templates)
    except BaseException as exc:
        await _abort(launching)
        if isinstance(exc, Exception):
            raise _load_failed(entry, explain_tokenizer(exc)) from exc
        raise
    try:
        engine = await launching
    except LoadRaised as exc:
        raise _load_failed(entry, explain(str(exc))) from exc
    try:
        return _loaded_model(entry, folder, language, engine, keep_alive_seconds)
    except BaseException:
        await engine.close()
        raise


def _load_failed(entry: ModelEntry, reason: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"Model {entry.id!r} cannot be loaded: {reason}", param="model")


def _load_language(entry: ModelEntry, folder: Path, templates: TemplateRenderer) -> Language:
    """Blocks for the files, and for rendering the chats that show what the template accepts."""
    own = entry.settings.chat_template if entry.settings is not None else None
    chat_templates = read_chat_templates(folder, own)
    tokenizer = load_tokenizer(folder, chat_templates=chat_templates, trust_remote_code=entry.trust_remote_code)
    tokenizer = render_apart(tokenizer, templates)
    adapter = get_adapter(entry.id, folder)
    output_format = get_output_format(adapter, tokenizer)
    traits, fault = probe_template(tokenizer, adapter, output_format)
    if not traits.native_tools:
        output_format = prompted_format(output_format)
        logger.info("Model %s is shown tools by a prompt: %s", entry.id, fault)
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


def _loaded_model(
    entry: ModelEntry, folder: Path, language: Language, engine: EngineClient, keep_alive_seconds: float
) -> LoadedModel:
    if not engine.alive:  # it died while the tokenizer was being loaded
        raise LoadingCrashed(f"Model {entry.id!r} cannot be loaded. {engine.epitaph}")
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
        keep_alive_seconds=keep_alive_seconds,
    )


@contextlib.asynccontextmanager
async def told(model_id: str, progress: Progress) -> AsyncIterator[None]:
    """Tells the log every few seconds how far the load is that goes on in the block."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            done, total = progress.done_bytes / 2**20, progress.total_bytes / 2**20
            logger.info("Model %s is %s: %.0f of %.0f MB", model_id, progress.stage, done, total)

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()


async def _abort(launching: "asyncio.Task[EngineClient]") -> None:
    """Ends a launch, and the worker if it is already up."""
    launching.cancel()
    (outcome,) = await asyncio.gather(launching, return_exceptions=True)
    if isinstance(outcome, EngineClient):
        await outcome.close()
