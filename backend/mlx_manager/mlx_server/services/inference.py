"""Serves a request: finds its model or a fallback, and yields the events of the answer. Knows no HTTP.

The two `generate_*` functions serve programs that run the app's lifespan themselves. Awaited, they return an async
iterator of OpenAI chunk dicts when `stream`, else one response dict. They raise `ServerError` where the HTTP endpoints
answer with an error status.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mlx_manager.mlx_server.errors import (
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    NotReady,
    ServerBusy,
    ServerError,
    UpstreamError,
)
from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.models.running import get_running
from mlx_manager.mlx_server.protocols.base import ParseOptions, Request, RequestT
from mlx_manager.mlx_server.protocols.chat import ChatCompletions
from mlx_manager.mlx_server.protocols.completions import DEFAULT_MAX_TOKENS as COMPLETION_TOKENS
from mlx_manager.mlx_server.protocols.completions import Completions
from mlx_manager.mlx_server.protocols.openai import ChunkProtocol, OpenAIWriter
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.services.backends import Backend, Backends
from mlx_manager.mlx_server.services.deadline import Deadline
from mlx_manager.mlx_server.services.hygiene import cleaned
from mlx_manager.mlx_server.services.tracing import traced
from mlx_manager.mlx_server.types import ChatRequest, GenerationEvents

logger = logging.getLogger(__name__)

Answer = JsonObject | AsyncIterator[JsonObject]
BodyT = TypeVar("BodyT", bound=BaseModel)


class _DefaultLimit(int):
    """A default limit: the limit of the model or of the settings takes precedence."""


DEFAULT_MAX_TOKENS = _DefaultLimit(4096)
DEFAULT_COMPLETION_TOKENS = _DefaultLimit(COMPLETION_TOKENS)

_FAILOVER = (InsufficientMemory, ModelLoadFailed, NotReady, ServerBusy, UpstreamError)
"""Failures of a model, not of the request: a fallback may answer it."""


@dataclass(slots=True)
class InferenceService:
    """Turns requests into events, for all models. A reload of the settings sets the fields."""

    backends: Backends
    timeout_seconds: float
    """For a whole request; 0 means no limit."""
    trace_content: bool = False

    async def generate(self, request: Request) -> GenerationEvents:
        """The events of the first model that can answer: the requested one, or one of its fallbacks.

        `Started` comes once, when the request is admitted. A fallback takes over only before the first token. If all
        fail, raises the failure of the requested model. Closing the iterator ends the generation.
        """
        if isinstance(request, ChatRequest):
            request = cleaned(request)
        with traced(request, self.trace_content) as trace, closing(Deadline(self.timeout_seconds)) as deadline:
            own = await self._resolve(request.model, deadline)
            failure: ServerError | None = None
            for name in (own.id, *own.fallbacks):
                try:
                    backend = own if failure is None else await self._resolve(name, deadline)
                    async with aclosing(backend.generate(request)) as events:
                        with trace.current(), deadline:  # the span of a model load becomes a child
                            event = await anext(events)
                        while True:
                            if trace.observe(event):
                                yield event
                            with deadline:
                                event = await anext(events)
                except StopAsyncIteration:
                    return
                except ServerError as exc:
                    if trace.is_answering or deadline.expired or (failure is None and not isinstance(exc, _FAILOVER)):
                        raise
                    logger.warning("Model %s failed for request %s: %s", name, request.id, exc)
                    failure = failure if failure is not None else exc
            assert failure is not None
            raise failure

    async def count_tokens(self, request: ChatRequest) -> int:
        """Number of prompt tokens that `generate` would pass to the requested model."""
        request = cleaned(request)
        with closing(Deadline(self.timeout_seconds)) as deadline:
            backend = await self._resolve(request.model, deadline)
            with deadline:
                return await backend.count_tokens(request)

    async def _resolve(self, name: str, deadline: Deadline) -> Backend:
        if self.backends.pool.draining:
            raise NotReady("The server is shutting down. Retry later.")
        with deadline:
            return await self.backends.resolve(name)


async def generate_chat_completion(
    model_id: str,
    messages: list[dict[str, Any]],
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: str | list[str] | None = None,
    stream: bool = False,
) -> Answer:
    """A chat completion of `messages`, each a dict with "role" and "content"."""
    fields = {"model": model_id, "messages": messages, "temperature": temperature, "top_p": top_p, "stop": stop}
    return await _answer(ChatCompletions(), openai.ChatCompletionRequest, fields, max_tokens, stream)


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
    """A completion that continues `prompt`."""
    fields = {
        "model": model_id,
        "prompt": prompt,
        "temperature": temperature,
        "top_p": top_p,
        "stop": stop,
        "echo": echo,
    }
    return await _answer(Completions(), openai.CompletionRequest, fields, max_tokens, stream)


async def _answer(
    protocol: ChunkProtocol[BodyT, RequestT], body: type[BodyT], fields: JsonObject, max_tokens: int, stream: bool
) -> Answer:
    running = get_running()
    asked = None if isinstance(max_tokens, _DefaultLimit) else max_tokens
    try:
        read = body.model_validate({**fields, "max_tokens": asked})
    except ValidationError as exc:
        raise InvalidRequest(str(exc)) from exc
    request = protocol.parse(read, ParseOptions(running.default_max_tokens()))
    request.record.streamed = stream
    events, writer = running.generate(request), protocol.writer(request)
    return _chunks(events, writer) if stream else writer.response(await fold(events))


async def _chunks(events: GenerationEvents, writer: OpenAIWriter) -> AsyncIterator[JsonObject]:
    async with aclosing(events):
        async for event in events:
            for chunk in writer.event(event):
                yield chunk
