"""One upstream server: forwards requests, lists its models, and checks its health."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec

from mlx_manager.mlx_server.errors import ModelNotFound, NotReady, UpstreamError
from mlx_manager.mlx_server.observability import trace_headers
from mlx_manager.mlx_server.protocols.base import Request
from mlx_manager.mlx_server.services.upstreams.bodies import DIALECTS, upstream_body
from mlx_manager.mlx_server.services.upstreams.chunks import ChunkReader
from mlx_manager.mlx_server.services.upstreams.event_stream import ServerSentEvent, events_of
from mlx_manager.mlx_server.services.upstreams.failures import UpstreamFailure, error_object
from mlx_manager.mlx_server.services.upstreams.replies import Replies, whole_body
from mlx_manager.mlx_server.services.upstreams.shapes import BadChunk
from mlx_manager.mlx_server.types import ChatRequest, GenerationEvents, Started
from mlx_manager.mlx_server.upstream_settings import UpstreamKind, UpstreamSettings
from mlx_manager.providers.base import Provider, ProviderClient, ProviderHealthStatus
from mlx_manager.providers.llamacpp import LLAMACPP
from mlx_manager.providers.mlxlm import MLXLM
from mlx_manager.providers.openai import OPENAI
from mlx_manager.providers.settings import ProviderSettings

logger = logging.getLogger(__name__)

CHECK_SECONDS = 10.0
USAGE_SECONDS = 5.0
"""Time limit for the usage, or the end of the stream, after the end of the last choice."""
LAST_BYTES_SECONDS = 1.0
"""Time limit for the end of the stream after [DONE], which lets the connection be reused."""
_READ_FAILURES = (BadChunk, UpstreamFailure, httpx.RequestError, RuntimeError)
"""What reading an answer raises once its connection is closed."""
_PROVIDERS: dict[UpstreamKind, Provider[Any]] = {"llamacpp": LLAMACPP, "mlxlm": MLXLM, "openai": OPENAI}
_HEADERS = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Content-Type": "application/json"}


class UpstreamServer:
    """Used from one event loop. Close it."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.health: ProviderHealthStatus | None = None
        """The result of the last check."""
        self._replies = Replies(settings)
        self._client = _client(settings)
        self._checking: asyncio.Task[ProviderHealthStatus] | None = None
        self._own_ids = self._by_local_id(settings.models) if settings.models is not None else None
        self._closed = False
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def model_ids(self) -> Collection[str]:
        """The ids of its models on this server; empty before the first check."""
        return self._own_ids if self._own_ids is not None else ()

    def may_have(self, model_id: str) -> bool:
        """Whether it lists the model, or may list it at the first check."""
        if self._own_ids is None:
            return model_id.startswith(self.settings.prefix_of_ids)
        return model_id in self._own_ids

    async def check(self) -> ProviderHealthStatus:
        """Checks the health and lists the models. Concurrent calls share one check."""
        if self._checking is None:
            self._checking = asyncio.create_task(self._check())
        return await asyncio.shield(self._checking)

    async def _check(self) -> ProviderHealthStatus:
        try:
            health, before = await self._client.check(), self.health
        finally:
            self._checking = None
        if before is None or (before.connected, before.error) != (health.connected, health.error):
            if health.error is None:
                logger.info("Upstream %s is up: %s", self.name, health.metadata.get("status", "it lists its models"))
            else:
                logger.warning("Upstream %s is unhealthy: %s", self.name, health.error)
        self.health = health
        if self.settings.models is None and "models" in health.metadata:
            self._own_ids = self._by_local_id(health.metadata["models"])
        return health

    def _by_local_id(self, own_ids: list[str]) -> dict[str, str]:
        return {self.settings.prefix_of_ids + own_id: own_id for own_id in own_ids}

    async def generate(self, request: Request, model_id: str) -> GenerationEvents:
        """The events of the answer, with `Started` once headers arrive. Closing them cancels the upstream's request.

        Raises UpstreamError, or the ServerError that matches the upstream's error status.
        """
        path = "/v1/chat/completions" if isinstance(request, ChatRequest) else "/v1/completions"
        searched_here = () if DIALECTS[self.settings.kind].finds_stop_strings else request.stop
        reader = ChunkReader(request.sequences, searched_here, request.include_stop)
        with self._replies.translated(), self._counted():
            body = upstream_body(request, self.settings.kind, await self.own_id(model_id))
            request.record.model, request.record.upstream = model_id, self.name
            logger.debug("Forwarding to upstream %s: %s, model=%s", self.name, request.id, model_id)
            content, headers = msgspec.json.encode(body), _HEADERS | trace_headers()
            async with aclosing(await self._client.connections.send("POST", path, content, headers)) as response:
                if await self._replies.is_stream(response):
                    yield Started()
                    async with aclosing(_streamed(response, reader)) as events:
                        async for event in events:
                            yield event
                else:
                    answer = [*reader.read(await whole_body(response)), *reader.finish()]
                    for event in (Started(), *answer):
                        yield event

    async def own_id(self, model_id: str) -> str:
        """The upstream's id of the model. Raises ModelNotFound, or UpstreamError if its list is missing."""
        if self._own_ids is None:
            health = await self.check()
            if self._own_ids is None:
                why = health.error or "It is loading. Retry later."
                raise UpstreamError(f"Upstream {self.name!r} does not list its models yet. {why}")
        if model_id not in self._own_ids:
            what = f"Upstream {self.name!r} has no model {model_id[:200]!r}."
            raise ModelNotFound(f"{what} Use an id of GET /v1/models.", param="model")
        return self._own_ids[model_id]

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Counts running requests. Raises NotReady if `aclose` cut the answer off."""
        self._requests += 1
        self._idle.clear()
        try:
            yield
        except _READ_FAILURES as exc:
            if self._closed:
                raise NotReady("The server is shutting down. Retry later.") from exc
            raise
        finally:
            self._requests -= 1
            if self._requests == 0:
                self._idle.set()

    async def retire(self) -> None:
        """Closes it after its running requests end. Send it no more requests."""
        await self._idle.wait()
        await self.aclose()
        logger.info("Upstream %s is removed", self.name)

    async def aclose(self) -> None:
        """Running requests raise NotReady."""
        self._closed = True
        if self._checking is not None:
            self._checking.cancel()
        await self._client.aclose()


def _client(settings: UpstreamSettings) -> ProviderClient:
    # Pass every setting, so that none is read from the environment.
    check_settings = ProviderSettings(
        base_url=settings.base_url, model_name=None, api_key=settings.api_key, timeout=CHECK_SECONDS
    )
    return ProviderClient(_PROVIDERS[settings.kind], check_settings, settings.name, settings.timeout_seconds)


async def _streamed(response: httpx.Response, reader: ChunkReader) -> GenerationEvents:
    async with aclosing(events_of(response.aiter_bytes())) as sent:
        while (message := await _next(sent, reader)) is not None and not message.is_done:
            if message.is_error:
                raise UpstreamFailure(error_object(message.payload))
            for event in reader.read(message.payload):
                yield event
            if reader.stopped:
                break
        for event in reader.finish():
            yield event
        if not reader.stopped:
            await _read_to_the_end(sent)


async def _next(sent: AsyncGenerator[ServerSentEvent, None], reader: ChunkReader) -> ServerSentEvent | None:
    """The next event, None at the end. After the end of the answer, a connection error is ignored."""
    if not reader.ended:
        return await anext(sent, None)
    with contextlib.suppress(TimeoutError, httpx.RequestError):
        async with asyncio.timeout(USAGE_SECONDS if reader.expects_no_more else None):
            return await anext(sent, None)
    return None


async def _read_to_the_end(sent: AsyncGenerator[ServerSentEvent, None]) -> None:
    """Lets the connection be reused."""
    with contextlib.suppress(TimeoutError, httpx.RequestError, BadChunk):
        async with asyncio.timeout(LAST_BYTES_SECONDS):
            async for _ in sent:
                pass
