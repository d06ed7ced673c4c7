"""The API's side of a model over several ranks: starts their workers, and ends all of them when one is lost.

Rank 0 takes the requests. The connections to the others carry heartbeats, statistics and faults; plans and tokens go
from rank to rank by MLX. Runs on the event loop.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import msgspec

from mlx_manager.mlx_server.engine.client import EngineClient
from mlx_manager.mlx_server.engine.launch import Worker, launch_worker
from mlx_manager.mlx_server.engine.membership import Membership
from mlx_manager.mlx_server.engine.messages import LOST_RANK_STATUS, Device, Launch, Limits, Ready, Stats, UpMessage
from mlx_manager.mlx_server.engine.worker_client import LoadRaised, Supervision, WorkerClient
from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.utils.memory import bytes_text

logger = logging.getLogger(__name__)

CAUSE_SECONDS = 1.0
"""A rank that lost another one waits this long for the fault of the other one."""
END_SECONDS = 2.0
LOG_SECONDS = 5.0
_NOT_JOINED = "has not reached the other ranks in time. Check that they run and reach the addresses of the hosts file"


class RankClient(WorkerClient):
    """One rank but the first."""

    pending = 0

    def __init__(self, model_id: str, worker: Worker, launch: Launch, supervision: Supervision) -> None:
        super().__init__(model_id, worker, launch.limits, supervision)
        assert launch.membership is not None
        self.rank = launch.membership.rank
        self.is_here = launch.membership.host.ssh is None
        self.name = rank_name(model_id, launch.membership)
        self._loaded.add_done_callback(_note_failure)
        self.lost_another = False
        """Whether it has exited because it lost another rank."""
        self.has_reported = False
        """Whether it has exited, and `exit_reason` says why."""

    @classmethod
    async def start(cls, model_id: str, launch: Launch, supervision: Supervision) -> Self:
        """Starts the rank. It is loaded when `loaded` is done."""
        client = cls(model_id, await launch_worker(launch), launch, supervision)
        logger.info("%s has started", client.name)
        return client

    @property
    def loaded(self) -> "asyncio.Future[None]":
        """Raises as `launch` does."""
        return self._loaded

    def expect_end(self) -> None:
        """Its exit is no fault from now on."""
        self._closing = True

    async def end(self, within_seconds: float = 0.0) -> None:
        """Kills the rank unless it exits by itself within that time. Does not report its death."""
        self.expect_end()
        await asyncio.wait({self._reading}, timeout=within_seconds)
        self._kill()
        await asyncio.wait({self._reading}, timeout=END_SECONDS)

    def _fail_all(self, failure: ServerError) -> None:
        """A rank has no requests of its own."""

    def _note_ready(self, ready: Ready) -> None:
        logger.info("%s is ready and holds %s", self.name, bytes_text(ready.active_bytes))

    def _describe_exit(self, status: int) -> str:
        self.lost_another = status == LOST_RANK_STATUS
        self.has_reported = True
        return super()._describe_exit(status)

    def _ending(self, status: int) -> str:
        return _NOT_JOINED if status == -signal.SIGALRM else super()._ending(status)


class RankedEngineClient(EngineClient):
    """Rank 0, and with it the whole group: it lives and dies with all of its ranks."""

    def __init__(self, model_id: str, worker: Worker, limits: Limits, supervision: Supervision) -> None:
        super().__init__(model_id, worker, limits, supervision)
        self.own_stats = Stats()
        """Of rank 0 alone, while `stats` has the memory of all ranks on this machine."""
        self._loaded.add_done_callback(_note_failure)
        self._others: list[RankClient] = []
        self._ranks_here = 1
        self._culprit: RankClient | None = None
        """The rank that ended the group."""

    @classmethod
    async def launch(cls, model_id: str, launch: Launch, supervision: Supervision) -> Self:
        """Starts all ranks that are not started by hand, and waits until the model is loaded.

        Raises as `WorkerClient.launch` does, for the rank at fault.
        """
        assert launch.membership is not None
        progress, name = _Progress(supervision), rank_name(model_id, launch.membership)
        client = cls(model_id, await launch_worker(launch), launch.limits, progress.of(name))
        client.name = name
        client._ranks_here = launch.membership.ranks_here
        try:
            for one in _other_launches(launch):
                assert one.membership is not None
                watched = progress.of(rank_name(model_id, one.membership), on_death=client._rank_died)
                client._others.append(await RankClient.start(model_id, one, watched))
            await client._wait_until_loaded()
        except BaseException:
            await client.close()
            raise
        client._add_others()
        return client

    @property
    def rank_stats(self) -> dict[int, Stats]:
        """The statistics of each rank that this server has started."""
        return {0: self.own_stats, **{other.rank: other.stats for other in self._others}}

    @property
    def fault(self) -> str | None:
        return next(filter(None, (super().fault, *(other.fault for other in self._others))), None)

    def limit(self, limits: Limits) -> None:
        super().limit(limits.shared_by(self._ranks_here))

    async def close(self) -> None:
        for other in self._others:
            other.expect_end()
        await super().close()
        await self._end_others()

    def _dispatch(self, message: UpMessage) -> None:
        super()._dispatch(message)
        if isinstance(message, Stats | Ready):
            self.own_stats = self.stats
            self._add_others()

    def _add_others(self) -> None:
        """Adds the memory of the other ranks on this machine, for the budget."""
        here = [self.own_stats, *(other.stats for other in self._others if other.is_here)]
        self.stats = msgspec.structs.replace(
            self.own_stats,
            active_bytes=sum(one.active_bytes for one in here),
            peak_bytes=sum(one.peak_bytes for one in here),
            cache_bytes=sum(one.cache_bytes for one in here),
            prefix_bytes=self.own_stats.prefix_bytes * len(here),
        )

    async def _wait_until_loaded(self) -> None:
        loads = {self._loaded, *(other.loaded for other in self._others)}
        _, pending = await asyncio.wait(loads, return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            await asyncio.wait(pending, timeout=CAUSE_SECONDS)
        failures = [(not isinstance(failure, LoadRaised), lost, failure) for lost, failure in self._load_failures()]
        if failures:
            raise min(failures, key=lambda one: one[:2])[2]

    def _load_failures(self) -> Iterator[tuple[bool, BaseException]]:
        """The failures of loads, with whether the rank only lost another one."""
        ranks = [(self._worker.process.returncode == LOST_RANK_STATUS, self._loaded)]
        for lost, load in [*ranks, *((other.lost_another, other.loaded) for other in self._others)]:
            failure = load.exception() if load.done() and not load.cancelled() else None
            if failure is not None:
                yield lost, failure

    def _rank_died(self, other: WorkerClient) -> None:
        """Ends the group, at once or, if the rank only lost another one, when that one has not died soon."""
        assert isinstance(other, RankClient)
        if self._exited or self._closing:
            return
        if other.lost_another:
            asyncio.get_running_loop().call_later(CAUSE_SECONDS, self._end_because_of, other)
        else:
            self._end_because_of(other)

    def _end_because_of(self, other: RankClient) -> None:
        if self._culprit is None and not self._exited:
            self._culprit = other
            self._kill()

    async def _wait_for_exit(self) -> int:
        status = await super()._wait_for_exit()
        deadline = time.monotonic() + CAUSE_SECONDS
        while status == LOST_RANK_STATUS and self._culprit is None and time.monotonic() < deadline:
            self._culprit = next((one for one in self._others if one.has_reported and not one.lost_another), None)
            await asyncio.sleep(0.01)
        await self._end_others(END_SECONDS if status == 0 else 0.0)
        return status

    async def _end_others(self, within_seconds: float = 0.0) -> None:
        await asyncio.gather(*(other.end(within_seconds) for other in self._others))

    def _describe_exit(self, status: int) -> str:
        return self._culprit.exit_reason if self._culprit is not None else super()._describe_exit(status)

    def _ending(self, status: int) -> str:
        return _NOT_JOINED if status == -signal.SIGALRM else super()._ending(status)


def rank_name(model_id: str, membership: Membership) -> str:
    ssh = membership.host.ssh
    return f"Rank {membership.rank} of model {model_id!r}{f' on {ssh}' if ssh is not None else ''}"


def _other_launches(launch: Launch) -> Iterator[Launch]:
    """The launches of the other ranks. Logs what the user has to start by hand."""
    membership = launch.membership
    assert membership is not None
    for rank, host in enumerate(membership.hosts[1:], 1):
        if host.by_hand:
            where = ", ".join(host.addresses)
            logger.info("Waiting for rank %d at %s. Start it there with: mlx-manager rank", rank, where)
            continue
        folder = _from_home(launch.folder) if host.ssh is not None else launch.folder
        environment = {**membership.environment, **_own_gpu(membership, rank)}
        place = msgspec.structs.replace(membership, rank=rank, environment=environment)
        yield msgspec.structs.replace(launch, folder=folder, membership=place)


def _own_gpu(membership: Membership, rank: int) -> dict[str, str]:
    """NCCL needs a GPU for each rank of a machine."""
    is_shared = membership.backend == "nccl" and membership.hosts[rank].ssh is None
    return {"CUDA_VISIBLE_DEVICES": str(rank)} if is_shared else {}


def _from_home(folder: str) -> str:
    """The path from the home folder on, which may lie elsewhere on another machine."""
    path, home = Path(folder), Path(os.path.expanduser("~"))
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else folder


def _note_failure(load: "asyncio.Future[None]") -> None:
    """Marks the failure as seen: only one rank's failure is raised."""
    if not load.cancelled():
        load.exception()


class _Progress:
    """Adds up and logs the progress of all ranks."""

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision
        self._bytes: dict[str, int] = {}
        self._logged_at: dict[str, float] = {}

    def of(self, name: str, on_death: Callable[[WorkerClient], None] | None = None) -> Supervision:
        """The supervision of one rank. Only rank 0 has no `on_death` of its own, and reports its device."""
        watched = replace(self._supervision, on_progress=lambda nbytes: self._note(name, nbytes))
        return watched if on_death is None else replace(watched, on_death=on_death, on_device=_ignore)

    def _note(self, name: str, nbytes: int) -> None:
        self._bytes[name] = nbytes
        self._supervision.on_progress(sum(self._bytes.values()))
        now = time.monotonic()
        if now - self._logged_at.setdefault(name, now) >= LOG_SECONDS:
            self._logged_at[name] = now
            logger.info("%s is loading and holds %s", name, bytes_text(nbytes))


def _ignore(device: Device) -> None:
    """The budget is that of the machine of rank 0."""
