"""Which backend a request goes to: the model of this machine or an upstream's, or those that stand in for it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from fnmatch import fnmatchcase

from mlx_manager.mlx_server.errors import (
    InsufficientMemory,
    ModelLoadFailed,
    NotReady,
    ServerBusy,
    ServerError,
    UpstreamError,
)
from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.services.upstreams.registry import Upstreams
from mlx_manager.mlx_server.services.upstreams.server import UpstreamServer
from mlx_manager.mlx_server.types import ChatRequest, CompletionRequest, GenerationEvents, Started

logger = logging.getLogger(__name__)

Request = ChatRequest | CompletionRequest
Backend = Callable[[Request], GenerationEvents]

_PASSING = (InsufficientMemory, ModelLoadFailed, NotReady, ServerBusy, UpstreamError)
"""Failures of a model that say nothing of the request: another model may answer it."""


class Routing:
    """Ids of this machine's models come before upstreams' ids."""

    def __init__(
        self,
        pool: ModelPoolManager,
        upstreams: Upstreams,
        fallbacks: Mapping[str, Sequence[str]],
        aliases: Mapping[str, str],
    ) -> None:
        """`fallbacks` are for models of this machine; upstreams have their own. `aliases` are for unknown names."""
        self._pool = pool
        self._upstreams = upstreams
        self.fallbacks = fallbacks
        self.aliases = aliases

    def model_id(self, name: str) -> str:
        """The id of the model that answers for the name: its own, or the one that the first fitting alias names."""
        if not self.aliases or self._pool.catalog.knows(name) or self._upstreams.find(name) is not None:
            return name
        return next((model for pattern, model in self.aliases.items() if fnmatchcase(name, pattern)), name)

    def upstream(self, model_id: str) -> UpstreamServer | None:
        """None for a model of this machine, and for an id that no upstream has either.

        The catalogue may still have an answer to such an id: a download, or the default model.
        """
        return None if self._pool.catalog.knows(model_id) else self._upstreams.find(model_id)

    async def events(self, request: Request, local: Backend) -> GenerationEvents:
        """Of the first model that can answer, of the request's and its fallbacks, chosen before the first token.

        Raises what the request's own model failed with when none of them can.
        """
        if self._pool.draining:
            raise NotReady("The server is shutting down.")
        wanted = self.model_id(request.model)
        upstream = self.upstream(wanted)
        failure: ServerError | None = None
        started = answering = False
        for model_id in (wanted, *self._fallbacks_of(wanted, upstream)):
            try:
                async with aclosing(self._attempt(replace(request, model=model_id), local)) as events:
                    async for event in events:
                        if not isinstance(event, Started):
                            answering = True
                        elif started:
                            continue
                        started = True
                        yield event
                return
            except ServerError as exc:
                if answering or (failure is None and not isinstance(exc, _PASSING)):
                    raise
                logger.warning("Model %s cannot answer %s: %s", model_id, request.id, exc)
                failure = failure if failure is not None else exc
        assert failure is not None
        raise failure

    def _attempt(self, request: Request, local: Backend) -> GenerationEvents:
        upstream = self.upstream(request.model)
        return local(request) if upstream is None else upstream.generate(request)

    def _fallbacks_of(self, model_id: str, upstream: UpstreamServer | None) -> Sequence[str]:
        if upstream is not None:
            return upstream.settings.fallback
        return self.fallbacks.get(model_id, ())
