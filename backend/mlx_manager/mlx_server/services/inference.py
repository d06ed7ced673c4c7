"""The straight line of every request: lease the model, render and tokenise, compile the grammar, generate, events.

Knows no HTTP. The two `generate_*` functions are for programs that run the app's lifespan themselves. They use its
service, so upstreams, fallbacks, deadline and limits are those of the HTTP endpoints. Awaited first, each gives an
async iterator of OpenAI's chunks as dicts when `stream`, else one response; they raise `ServerError` where the HTTP
endpoints answer with a status.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from mlx_manager.mlx_server.engine.sequences import Sequence
from mlx_manager.mlx_server.errors import InvalidRequest, NotReady, UpstreamError
from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.models.pool import LoadedModel, ModelPoolManager
from mlx_manager.mlx_server.protocols import chat, completions
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.services.choices import ChoiceEvent, ChoiceRun, best_of, keeps_the_best, plan_choices
from mlx_manager.mlx_server.services.constraints import compile_grammar
from mlx_manager.mlx_server.services.deadline import within
from mlx_manager.mlx_server.services.hygiene import cleaned
from mlx_manager.mlx_server.services.prompts import check_length, read_prompts
from mlx_manager.mlx_server.services.routing import Routing
from mlx_manager.mlx_server.services.tracing import traced
from mlx_manager.mlx_server.types import (
    ChatRequest,
    Completed,
    CompletionRequest,
    GenerationEvents,
    Prefilled,
    Started,
    Usage,
)

logger = logging.getLogger(__name__)

Answer = JsonObject | AsyncIterator[JsonObject]


class _Unasked(int):
    """A limit that the caller did not ask for: the model's own comes before it, and it is cut to what fits."""


DEFAULT_MAX_TOKENS = _Unasked(4096)
DEFAULT_COMPLETION_TOKENS = _Unasked(completions.DEFAULT_MAX_TOKENS)
_running_service: "InferenceService | None" = None


class InferenceService:
    """Turns requests into events, over the models of a pool and those of upstreams."""

    def __init__(
        self,
        pool: ModelPoolManager,
        timeout_seconds: float,
        routing: Routing,
        *,
        max_prompt_characters: int,
        trace_content: bool,
    ) -> None:
        """A request may take `timeout_seconds`; 0 for as long as it takes."""
        self._pool = pool
        self.routing = routing
        self.timeout_seconds = timeout_seconds
        self.max_prompt_characters = max_prompt_characters
        self.trace_content = trace_content

    def generate(self, request: ChatRequest | CompletionRequest) -> GenerationEvents:
        """The events of the request, `Started` once it is admitted. Closing the iterator cancels the generation."""
        if isinstance(request, ChatRequest):
            request = cleaned(request)
        events = self.routing.events(request, self._events)
        if self.timeout_seconds:
            events = within(events, self.timeout_seconds)
        return traced(events, request, self.trace_content)

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt that `generate` would have the model read. An upstream counts them by answering."""
        request = replace(cleaned(request), model=self.routing.model_id(request.model))
        if self.routing.upstream(request.model) is not None:
            return await self._counted_by_upstream(replace(request, max_tokens=1))
        check_length(request, self.max_prompt_characters)
        async with self._pool.lease(request.model, 0, request.keep_alive_seconds) as model:
            (prompt,) = await read_prompts(model, request, self.max_prompt_characters)
        return len(prompt.tokens)

    async def _counted_by_upstream(self, request: ChatRequest) -> int:
        usage = (await fold(self.generate(request))).usage
        if not usage.prompt_tokens:
            raise UpstreamError(f"Model {request.model!r} is an upstream's that does not count a prompt's tokens.")
        return usage.prompt_tokens

    async def _events(self, request: ChatRequest | CompletionRequest) -> GenerationEvents:
        check_length(request, self.max_prompt_characters)
        record, asked_at = request.record, time.time()
        async with self._pool.lease(request.model, request.sequences, request.keep_alive_seconds) as model:
            _note_lease(record, model, asked_at)
            prompts = await read_prompts(model, request, self.max_prompt_characters)
            record.prompt_tokens = sum(len(prompt.tokens) for prompt in prompts)
            grammar = await compile_grammar(self._pool.grammars, model, request)
            planned = plan_choices(model, request, prompts, grammar)
            runs = [run for run, _ in planned]
            logger.debug("Starting generation: %s, model=%s, choices=%d", request.id, model.model_id, len(runs))
            async with model.engine.generate([submission for _, submission in planned]) as sequences:
                try:
                    yield Started()
                    held: list[ChoiceEvent] = []
                    is_prefilled = False
                    async for index, tokens in sequences:
                        if not is_prefilled:
                            is_prefilled = True
                            yield _prefilled(model, record, sequences.members[:: len(runs) // len(prompts)])
                        events = runs[index].events(tokens)
                        if runs[index].finished:
                            sequences.cancel(index)
                        if keeps_the_best(request):
                            held += events
                        else:
                            for event in events:
                                yield event
                    for event in best_of(request, runs, held):
                        yield event
                finally:
                    _note_work(record, runs, sequences.members, len(prompts))
        yield Completed(
            Usage(
                record.prompt_tokens,
                record.completion_tokens,
                record.cached_tokens,
                record.reasoning_tokens,
                record.stored_tokens,
            )
        )


def _note_lease(record: GenerationRecord, model: LoadedModel, asked_at: float) -> None:
    """`asked_at` is in Unix seconds, as the model's times are."""
    record.model, record.upstream = model.model_id, None  # it may stand in for an upstream's
    record.leased = time.perf_counter()
    if model.loaded_at >= asked_at:
        record.load_seconds = time.time() - asked_at


def _prefilled(model: LoadedModel, record: GenerationRecord, members: list[Sequence]) -> Prefilled:
    """`members` are the first choice of each prompt, which read it. The worker keeps what fits into its cache."""
    record.cached_tokens = sum(member.cached_tokens for member in members)
    new = record.prompt_tokens - record.cached_tokens
    if model.engine.kv_bytes_per_token * new <= model.engine.limits.prefix_cache_bytes:
        record.stored_tokens = new
    return Prefilled(record.prompt_tokens, record.cached_tokens, record.stored_tokens)


def _note_work(record: GenerationRecord, runs: list[ChoiceRun], members: list[Sequence], prompts: int) -> None:
    """What was generated, also when it came to no end. Of the choices of one prompt, the first took it in."""
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


def set_running_service(service: InferenceService | None) -> None:
    """For the lifespan alone."""
    global _running_service
    _running_service = service


def _get_running_service() -> InferenceService:
    if _running_service is None:
        raise NotReady("No server is running: enter the app's lifespan first.")
    return _running_service


async def generate_chat_completion(
    model_id: str,
    messages: list[dict[str, Any]],
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: str | list[str] | None = None,
    stream: bool = False,
) -> Answer:
    """One chat completion of `messages`, each a dict with "role" and "content"."""
    fields = {
        "messages": messages,
        "max_tokens": _asked(max_tokens),
        "temperature": temperature,
        "top_p": top_p,
        "stop": stop,
    }
    try:
        body = openai.ChatCompletionRequest.model_validate({"model": model_id, **fields})
    except ValidationError as exc:
        raise InvalidRequest(str(exc)) from exc
    request = chat.to_request(body, int(DEFAULT_MAX_TOKENS))
    request.record.streamed = stream
    events = _get_running_service().generate(request)
    return await _answer(events, chat.ChatBuilder(request), stream)


async def generate_completion(
    model_id: str,
    prompt: str,
    max_tokens: int = DEFAULT_COMPLETION_TOKENS,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: str | list[str] | None = None,
    echo: bool = False,
    stream: bool = False,
) -> Answer:
    """One completion that goes on from `prompt`."""
    fields = {
        "prompt": prompt,
        "max_tokens": _asked(max_tokens),
        "temperature": temperature,
        "top_p": top_p,
        "stop": stop,
    }
    try:
        body = openai.CompletionRequest.model_validate({"model": model_id, "echo": echo, **fields})
    except ValidationError as exc:
        raise InvalidRequest(str(exc)) from exc
    request = completions.to_request(body)
    request.record.streamed = stream
    events = _get_running_service().generate(request)
    return await _answer(events, completions.CompletionBuilder(request), stream)


def _asked(max_tokens: int) -> int | None:
    return None if isinstance(max_tokens, _Unasked) else max_tokens


async def _answer(
    events: GenerationEvents, builder: chat.ChatBuilder | completions.CompletionBuilder, stream: bool
) -> Answer:
    if not stream:
        return builder.response(await fold(events))
    return _chunks(events, builder)


async def _chunks(
    events: GenerationEvents, builder: chat.ChatBuilder | completions.CompletionBuilder
) -> AsyncIterator[JsonObject]:
    async with aclosing(events):
        async for event in events:
            for chunk in builder.event(event):
                yield chunk
