"""The connections to one upstream, over which it is asked, and over which its answers come."""

import contextlib
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

import httpx

from mlx_manager.addresses import server_root
from mlx_manager.mlx_server.services.upstreams.event_stream import (
    MAX_EVENT_BYTES,
    EventStreamDecoder,
    EventTooLong,
    ServerSentEvent,
)
from mlx_manager.mlx_server.services.upstreams.shapes import BadChunk
from mlx_manager.mlx_server.upstream_settings import UpstreamSettings
from mlx_manager.proxies import client_for

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
KEPT_CONNECTIONS = 20
DROPPED_WITHIN_SECONDS = 2.0
"""A kept connection that the upstream had closed fails at once; later the upstream may have begun to answer."""


class Connections:
    """Used from one event loop. Close them."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._name = settings.name
        verify = httpx.create_ssl_context()
        self._kept = _client(settings, KEPT_CONNECTIONS, verify)
        self._fresh = _client(settings, 0, verify)

    async def aclose(self) -> None:
        await self._kept.aclose()
        await self._fresh.aclose()

    @contextlib.asynccontextmanager
    async def post(self, path: str, content: bytes, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """The response, once its headers have come. Raises httpx.RequestError.

        A request over a kept connection which the upstream drops at once, without a byte of an answer, is asked again
        over a new one. The upstream has not seen it: it had closed the connection before.
        """
        connects = False

        async def note(event: str, info: Mapping[str, object]) -> None:
            nonlocal connects
            connects = connects or event.startswith("connection.connect")

        asked_at = time.monotonic()
        try:
            response = await _post(self._kept, path, content, headers, {"trace": note})
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as exc:
            if connects or time.monotonic() - asked_at > DROPPED_WITHIN_SECONDS:
                raise
            logger.info("Upstream %s dropped a kept connection (%s): asking over a new one", self._name, exc)
            response = await _post(self._fresh, path, content, headers, {})
        try:
            yield response
        finally:
            await response.aclose()


def _client(settings: UpstreamSettings, kept_connections: int, verify: ssl.SSLContext) -> httpx.AsyncClient:
    key, root = settings.api_key, server_root(settings.base_url)
    return client_for(
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
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=kept_connections),
        verify=verify,
    )


async def _post(
    client: httpx.AsyncClient, path: str, content: bytes, headers: Mapping[str, str], extensions: dict[str, object]
) -> httpx.Response:
    request = client.build_request("POST", path, content=content, headers=headers, extensions=extensions)
    return await client.send(request, stream=True)


async def events_of_stream(response: httpx.Response) -> AsyncGenerator[ServerSentEvent, None]:
    """Raises httpx.RequestError and BadChunk."""
    decoder = EventStreamDecoder()
    try:
        async for piece in response.aiter_bytes():
            for event in decoder.feed(piece):
                yield event
        for event in decoder.flush():
            yield event
    except EventTooLong as exc:
        raise BadChunk(f"sent an event of more than {MAX_EVENT_BYTES} bytes") from exc


async def whole_body(response: httpx.Response) -> bytes:
    """Raises httpx.RequestError and BadChunk."""
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > MAX_EVENT_BYTES:
            raise BadChunk(f"sent an answer of more than {MAX_EVENT_BYTES} bytes")
    return bytes(content)
