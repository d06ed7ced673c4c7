"""One upstream server: a request's events from it, its models, and whether it is well."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import httpx
import msgspec

from mlx_manager.addresses import server_root
from mlx_manager.mlx_server.errors import ModelNotFound, NotReady, UpstreamError
from mlx_manager.mlx_server.observability import trace_headers
from mlx_manager.mlx_server.services.upstreams.bodies import DIALECTS, Request, upstream_body
from mlx_manager.mlx_server.services.upstreams.checker import UpstreamChecker
from mlx_manager.mlx_server.services.upstreams.chunks import BadChunk, ChunkReader
from mlx_manager.mlx_server.services.upstreams.replies import Replies
from mlx_manager.mlx_server.types import ChatRequest, Completed, GenerationEvents, Started
from mlx_manager.mlx_server.upstream_settings import UpstreamSettings
from mlx_manager.providers.base import ProviderHealthStatus
from mlx_manager.proxies import client_for

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
LAST_BYTES_SECONDS = 1.0
"""How long the end of an answer may take behind its last chunk, so that the connection can be used again."""
MAX_LINE_BYTES = 2**24
_DONE = b"[DONE]"
_SHUTTING_DOWN = "The server is shutting down."


class UpstreamServer:
    """Used from one event loop. Close it."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.health: ProviderHealthStatus | None = None
        """As it was last asked for."""
        self._replies = Replies(settings)
        self._checker = UpstreamChecker(settings)
        self._checking: asyncio.Task[ProviderHealthStatus] | None = None
        self._listed: list[str] | None = settings.models
        self._closed = False
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        key = settings.api_key
        root = server_root(settings.base_url)
        self._http = client_for(
            root,
            httpx.AsyncClient,
            base_url=f"{root}/v1/",
            headers={
                "Accept": "text/event-stream",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                **({} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}),
            },
            timeout=httpx.Timeout(settings.timeout_seconds, connect=min(CONNECT_SECONDS, settings.timeout_seconds)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )

    @property
    def model_ids(self) -> list[str]:
        """The ids here of its models, as far as it has been asked for them."""
        return [self.settings.prefix_of_ids + model for model in self._listed or ()]

    def may_have(self, model_id: str) -> bool:
        """Whether the model is known to be its own, or may be while its list is not there yet."""
        if self._listed is None:
            return model_id.startswith(self.settings.prefix_of_ids)
        return model_id in self.model_ids

    async def check(self) -> ProviderHealthStatus:
        """Asks whether it is well, and for its models; those who wait at the same time share one answer."""
        if self._checking is None:
            self._checking = asyncio.create_task(self._check())
        return await asyncio.shield(self._checking)

    async def _check(self) -> ProviderHealthStatus:
        try:
            health, before = await self._checker.check(), self.health
        finally:
            self._checking = None
        if before is None or (before.connected, before.error) != (health.connected, health.error):
            if health.error is None:
                logger.info("Upstream %s is there: %s", self.name, health.metadata.get("status", "it lists its models"))
            else:
                logger.warning("Upstream %s is not well: %s", self.name, health.error)
        self.health = health
        if self.settings.models is None and "models" in health.metadata:
            self._listed = health.metadata["models"]
        return health

    async def generate(self, request: Request) -> GenerationEvents:
        """The events of the upstream's answer, `Started` once it sends headers. Closing them ends its request.

        Raises UpstreamError, and what the upstream's own refusal stands for.
        """
        path = "chat/completions" if isinstance(request, ChatRequest) else "completions"
        unknown_to_it = () if DIALECTS[self.settings.kind].finds_stop_strings else request.stop
        reader = ChunkReader(request.sequences, unknown_to_it, request.include_stop)
        with self._counted(), self._replies.translated(), self._until_closed():
            body = upstream_body(request, self.settings.kind, await self._own_id(request.model))
            request.record.model, request.record.upstream = request.model, self.name
            logger.debug("Asking upstream %s: %s, model=%s", self.name, request.id, request.model)
            async with self._http.stream(
                "POST", path, content=msgspec.json.encode(body), headers=trace_headers()
            ) as response:
                await self._replies.check(response)
                yield Started()
                async with aclosing(_payloads(response)) as payloads:
                    async for payload in payloads:
                        if payload == _DONE:
                            break
                        for event in reader.read(payload):
                            yield event
                        if unknown_to_it and reader.stopped:
                            break
                    else:
                        raise BadChunk("ended its answer without saying so")
                    yield Completed(reader.finish())
                    if not reader.stopped:
                        await _read_to_the_end(payloads)

    async def _own_id(self, model_id: str) -> str:
        """What the upstream calls the model. Raises UpstreamError where its list cannot be had, else ModelNotFound."""
        if self._listed is None:
            health = await self.check()
            if self._listed is None:
                raise UpstreamError(f"Upstream {self.name!r} does not list its models: {health.error or 'it loads'}.")
        if model_id not in self.model_ids:
            raise ModelNotFound(f"Upstream {self.name!r} has no model {model_id[:200]!r}.", param="model")
        return model_id.removeprefix(self.settings.prefix_of_ids)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._requests -= 1
            if self._requests == 0:
                self._idle.set()

    @contextlib.contextmanager
    def _until_closed(self) -> Iterator[None]:
        try:
            yield
        except (BadChunk, httpx.RequestError, RuntimeError) as exc:  # RuntimeError: a client that is closed
            if self._closed:
                raise NotReady(_SHUTTING_DOWN) from exc
            raise

    async def retire(self) -> None:
        """Closes it once the requests that are under way have ended; there must come no others."""
        await self._idle.wait()
        await self.aclose()
        logger.info("Upstream %s has left", self.name)

    async def aclose(self) -> None:
        """Requests that are still under way raise NotReady."""
        self._closed = True
        if self._checking is not None:
            self._checking.cancel()
        await self._http.aclose()
        await self._checker.aclose()


async def _payloads(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The `data:` of each line. httpx's own lines end at every U+2028 as well, which JSON may hold."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise BadChunk(f"sent a line of more than {MAX_LINE_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


async def _read_to_the_end(payloads: AsyncGenerator[bytes, None]) -> None:
    """A connection that was read to its end can be used again."""
    with contextlib.suppress(TimeoutError, httpx.RequestError, BadChunk):
        async with asyncio.timeout(LAST_BYTES_SECONDS):
            async for _ in payloads:
                pass
