"""The models that a request can name, local or on an upstream. A `Backend` turns a request into events.

`Backends` is the one catalogue: `resolve` finds the backend of a request. It knows no HTTP.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Protocol

from mlx_manager.mlx_server.engine.sequences import Sequence as EngineSequence
from mlx_manager.mlx_server.errors import UpstreamError
from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.pool import LoadedModel, ModelPoolManager
from mlx_manager.mlx_server.protocols.base import Request
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.services.choices import ChoiceEvent, ChoiceRun, best_of, plan_choices, returns_best_of
from mlx_manager.mlx_server.services.constraints import compile_grammar
from mlx_manager.mlx_server.services.misses import MissExplainer
from mlx_manager.mlx_server.services.prompt_history import PromptHistory
from mlx_manager.mlx_server.services.prompts import PromptRules, check_length, read_prompts
from mlx_manager.mlx_server.services.upstreams.registry import Upstreams
from mlx_manager.mlx_server.services.upstreams.server import UpstreamServer
from mlx_manager.mlx_server.types import ChatRequest, Completed, GenerationEvents, Prefilled, Started, Usage

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """A model that answers requests."""

    @property
    def id(self) -> str: ...

    @property
    def fallbacks(self) -> Sequence[str]:
        """Models to try, in order, while this one is unavailable."""

    def generate(self, request: Request) -> GenerationEvents:
        """`Started` once the request is admitted, `Completed` at the end. Closing the events ends the generation."""

    async def count_tokens(self, request: ChatRequest) -> int:
        """Number of prompt tokens that `generate` would pass to the model."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model of the pool."""

    entry: ModelEntry
    fallbacks: Sequence[str]
    pool: ModelPoolManager
    rules: PromptRules
    history: PromptHistory

    @property
    def id(self) -> str:
        return self.entry.id

    async def generate(self, request: Request) -> GenerationEvents:
        """Lease the model, render and tokenise, compile the grammar, generate; each choice's tokens become events."""
        check_length(request, self.rules.max_characters)
        record, asked_at = request.record, time.time()
        async with self.pool.lease(self.entry, request.sequences, request.keep_alive_seconds) as model:
            record.note_lease(model.model_id, model.loaded_at, asked_at)
            prompts = await read_prompts(model, request, self.rules)
            record.prompt_tokens = sum(len(prompt.tokens) for prompt in prompts)
            grammar = await compile_grammar(self.pool.grammars, model, request)
            planned = plan_choices(model, request, prompts, grammar)
            runs = [run for run, _ in planned]
            explainer = MissExplainer(self.history, self.entry, model, request, self.rules)
            logger.debug("Starting generation: %s, model=%s, choices=%d", request.id, model.model_id, len(runs))
            async with model.engine.generate([submission for _, submission in planned]) as sequences:
                try:
                    yield Started()
                    held: list[ChoiceEvent] = []
                    is_prefilled = False
                    async for index, tokens in sequences:
                        if not is_prefilled:
                            is_prefilled = True
                            first_choices = sequences.members[:: len(runs) // len(prompts)]
                            await explainer.explain(prompts, first_choices)
                            yield _prefilled(model, record, first_choices)
                        events = runs[index].events(tokens)
                        if runs[index].finished:
                            sequences.cancel(index)
                        if returns_best_of(request):
                            held += events
                        else:
                            for event in events:
                                yield event
                    for event in best_of(request, runs, held):
                        yield event
                finally:
                    _record_work(record, runs, sequences.members, len(prompts))
                    explainer.remember()
        yield Completed(
            Usage(
                record.prompt_tokens,
                record.completion_tokens,
                record.cached_tokens,
                record.reasoning_tokens,
                record.stored_tokens,
                record.miss,
                record.compared,
            )
        )

    async def count_tokens(self, request: ChatRequest) -> int:
        check_length(request, self.rules.max_characters)
        async with self.pool.lease(self.entry, 0, request.keep_alive_seconds) as model:
            (prompt,) = await read_prompts(model, request, self.rules)
        return len(prompt.tokens)


@dataclass(frozen=True, slots=True)
class UpstreamModel:
    """A model of another server. `id` is its id here."""

    id: str
    server: UpstreamServer

    @property
    def fallbacks(self) -> Sequence[str]:
        return self.server.settings.fallback

    def generate(self, request: Request) -> GenerationEvents:
        return self.server.generate(request, self.id)

    async def count_tokens(self, request: ChatRequest) -> int:
        """Generates one token and reads the count from its usage: upstreams have no endpoint that counts tokens."""
        usage = (await fold(self.generate(replace(request, max_tokens=1)))).usage
        if not usage.prompt_tokens:
            raise UpstreamError(f"The upstream of model {self.id!r} does not count prompt tokens. Use a local model.")
        return usage.prompt_tokens


@dataclass(slots=True)
class Backends:
    """The models of the pool's catalogue and of the upstreams. A pool model hides an upstream model of the same id.

    `fallbacks` maps ids of local models to models. `aliases` maps patterns to ids, for names that no model has.
    """

    pool: ModelPoolManager
    upstreams: Upstreams
    fallbacks: Mapping[str, Sequence[str]]
    aliases: Mapping[str, str]
    rules: PromptRules
    history: PromptHistory = field(default_factory=PromptHistory)

    async def resolve(self, name: str) -> LocalModel | UpstreamModel:
        """The model with that id or alias, else the one of the first pattern in `aliases` that matches.

        Only a name that matches no local and no upstream model can start a download or select the default model.
        Raises ModelNotFound.
        """
        found = self._find(name)
        if found is None:
            name = next((model for pattern, model in self.aliases.items() if fnmatchcase(name, pattern)), name)
            found = self._find(name)
        if found is None:
            found = self._local(await self.pool.find(name, self.upstreams.models()), name)
        return found

    def __iter__(self) -> Iterator[LocalModel | UpstreamModel]:
        """Each id once: the models of the catalogue, then those of each upstream's latest list."""
        local = [self._local(entry, entry.id) for entry in self.pool.catalog]
        ids = {model.id for model in local}
        yield from local
        yield from (UpstreamModel(*one) for one in self.upstreams.models().items() if one[0] not in ids)

    def has(self, model_id: str) -> bool:
        """Whether a model has that id or alias. A loaded model may no longer be in the catalogue."""
        pool = self.pool
        return pool.catalog.knows(model_id) or pool.is_loaded(model_id) or model_id in self.upstreams.models()

    def _find(self, name: str) -> LocalModel | UpstreamModel | None:
        entry = self.pool.catalog.find(name)
        if entry is not None:
            return self._local(entry, name)
        server = self.upstreams.find(name)
        return UpstreamModel(name, server) if server is not None else None

    def _local(self, entry: ModelEntry, name: str) -> LocalModel:
        fallbacks = self.fallbacks.get(entry.id, self.fallbacks.get(name, ()))
        return LocalModel(entry, fallbacks, self.pool, self.rules, self.history)


def _prefilled(model: LoadedModel, record: GenerationRecord, members: list[EngineSequence]) -> Prefilled:
    """`members` are the first choice of each prompt, which prefills it. The worker stores what fits into its cache."""
    record.cached_tokens = sum(member.cached_tokens for member in members)
    new = record.prompt_tokens - record.cached_tokens
    if model.engine.kv_bytes_per_token * new <= model.engine.limits.prefix_cache_bytes:
        record.stored_tokens = new
    return Prefilled(record.prompt_tokens, record.cached_tokens, record.stored_tokens, record.miss, record.compared)


def _record_work(record: GenerationRecord, runs: list[ChoiceRun], members: list[EngineSequence], prompts: int) -> None:
    """Records what was generated, also by a cancelled request. The first choice of each prompt prefills it."""
    first_choices = members[:: len(runs) // prompts]
    prefilled = [member.prefilled_at for member in members if member.prefilled_at is not None]
    record.admitted = max(member.admitted_at for member in members if member.admitted_at is not None)
    if prefilled:
        record.prefilled = max(prefilled)
        record.queue_seconds = min(member.queue_seconds for member in members if member.prefilled_at is not None)
    record.cached_tokens = sum(member.cached_tokens for member in first_choices)
    record.completion_tokens = sum(run.completion_tokens for run in runs)
    record.reasoning_tokens = sum(run.reasoning_tokens for run in runs)
    record.broken_calls = sum(run.broken_calls for run in runs)
