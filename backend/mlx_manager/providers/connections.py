"""The connections to one server: keeps them alive, and uses a proxy from the environment. Knows no endpoint."""

import logging
import time
from collections.abc import Mapping

import httpx
from pydantic import SecretStr

from mlx_manager.proxies import UnusableProxy, client_for

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
KEPT_CONNECTIONS = 20
DROPPED_WITHIN_SECONDS = 2.0
"""A kept connection that the server closed earlier fails at once; later, the server may have seen the request."""


class Connections:
    """Used from one event loop. Close them."""

    def __init__(self, root: str, api_key: SecretStr | None, timeout_seconds: float) -> None:
        """`timeout_seconds` is the longest pause between bytes of the server. Opens no connection yet."""
        self.root = root
        self._key = {} if api_key is None else {"Authorization": f"Bearer {api_key.get_secret_value()}"}
        self._timeout = httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
        self._clients: dict[int, httpx.AsyncClient] = {}
        self._closed = False
        self._proxy_fault: str | None = None

    def open(self) -> None:
        """Raises UnusableProxy at once, not at the first request."""
        self._client(KEPT_CONNECTIONS)

    async def aclose(self) -> None:
        """Running requests fail; later ones raise RuntimeError."""
        self._closed = True
        for client in self._clients.values():
            await client.aclose()

    async def send(
        self, method: str, path: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The response, once its headers have arrived. The caller closes it.

        If a kept connection is dropped at once without an answer, the server has not seen the request, and it is sent
        again over a new connection. Raises httpx.RequestError, UnusableProxy, and RuntimeError once closed.
        """
        is_new = False

        async def note(event: str, info: Mapping[str, object]) -> None:
            nonlocal is_new
            is_new = is_new or event.startswith("connection.connect")

        async def send(kept_connections: int) -> httpx.Response:
            client = self._client(kept_connections)
            request = client.build_request(
                method, self.root + path, content=content, headers=headers, extensions={"trace": note}
            )
            return await client.send(request, stream=True)

        sent_at = time.monotonic()
        try:
            return await send(KEPT_CONNECTIONS)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as exc:
            if is_new or time.monotonic() - sent_at > DROPPED_WITHIN_SECONDS:
                raise
            logger.info("%s dropped a kept connection (%s). Retrying over a new one.", self.root, exc)
            return await send(0)

    def _client(self, kept_connections: int) -> httpx.AsyncClient:
        if self._closed:
            raise RuntimeError("the connections are closed")
        if kept_connections not in self._clients:
            if self._proxy_fault is not None:  # making a client takes a tenth of a second
                raise UnusableProxy(self._proxy_fault)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=kept_connections)
            try:
                self._clients[kept_connections] = client_for(
                    self.root, httpx.AsyncClient, headers=self._key, timeout=self._timeout, limits=limits
                )
            except UnusableProxy as exc:
                self._proxy_fault = str(exc)
                raise
        return self._clients[kept_connections]
