"""All upstreams: which one serves a model, and the health of each."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_manager.mlx_server.services.upstreams.server import UpstreamServer
from mlx_manager.mlx_server.upstream_settings import UpstreamSettings
from mlx_manager.providers.base import LOADING


@dataclass(frozen=True, slots=True)
class UpstreamHealth:
    """`status` is `ready`, `loading`, `down`, or `unknown` before the first check; `error` is why it is down."""

    name: str
    kind: str
    status: str
    models: list[str]
    error: str | None


class Upstreams:
    """Created and used in one event loop. `start` starts the health checks; `aclose` stops them."""

    def __init__(self, settings: Sequence[UpstreamSettings] = (), poll_seconds: float = 10) -> None:
        self._servers = [UpstreamServer(upstream) for upstream in settings]
        self._poll_seconds = poll_seconds
        self._polling: dict[UpstreamServer, asyncio.Task[None]] = {}
        self._retiring: dict[UpstreamServer, asyncio.Task[None]] = {}

    def update(self, settings: Sequence[UpstreamSettings], poll_seconds: float) -> None:
        """Applies new settings. Upstreams with an unchanged entry stay; removed ones finish their requests."""
        self._poll_seconds = poll_seconds
        before, self._servers = self._servers, []
        for upstream in settings:
            kept = next((server for server in before if server.settings == upstream), None)
            self._servers.append(kept if kept is not None else UpstreamServer(upstream))
        for server in before:
            if server not in self._servers:
                self._polling.pop(server).cancel()
                self._retire(server)
        self.start()

    def find(self, model_id: str) -> UpstreamServer | None:
        """The first upstream that has the model, or may have it before it first listed its models."""
        return next((server for server in self._servers if server.may_have(model_id)), None)

    def models(self) -> dict[str, UpstreamServer]:
        """Maps each id to the first upstream that lists it."""
        owners: dict[str, UpstreamServer] = {}
        for server in self._servers:
            for model_id in server.model_ids:
                owners.setdefault(model_id, server)
        return owners

    def health(self) -> list[UpstreamHealth]:
        return [_health(server) for server in self._servers]

    def start(self) -> None:
        for server in self._servers:
            if server not in self._polling:
                self._polling[server] = asyncio.create_task(self._poll(server))

    async def aclose(self) -> None:
        """Running requests raise NotReady."""
        tasks = [*self._polling.values(), *self._retiring.values()]
        for task in tasks:
            task.cancel()
        servers = [*self._servers, *self._retiring]
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(server.aclose() for server in servers))

    def _retire(self, server: UpstreamServer) -> None:
        self._retiring[server] = asyncio.create_task(server.retire())
        self._retiring[server].add_done_callback(lambda _: self._retiring.pop(server))

    async def _poll(self, server: UpstreamServer) -> None:
        while True:
            await server.check()
            await asyncio.sleep(self._poll_seconds)


def _health(server: UpstreamServer) -> UpstreamHealth:
    found = server.health
    if found is None:
        status = "unknown"
    elif not found.connected or found.error is not None:
        status = "down"
    else:
        status = "loading" if found.metadata.get("status") == LOADING else "ready"
    error = found.error if found is not None else None
    return UpstreamHealth(server.name, server.settings.kind, status, list(server.model_ids), error)
