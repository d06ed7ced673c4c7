"""Where the ranks of a model run, and how they divide it. A part of `Launch`."""

from typing import Literal

import msgspec

JOIN_SECONDS = 120
"""How long ranks that the server starts may take to connect."""
JOIN_BY_HAND_SECONDS = 600
"""And ranks of which some are started by hand. SIGALRM then ends the process."""

Backend = Literal["ring", "jaccl", "nccl"]
"""The transports of `mlx.distributed`: TCP, RDMA over Thunderbolt, and NVIDIA's library."""
Parallel = Literal["tensor", "pipeline"]
"""How a model is divided: every layer among all ranks, or the layers among the ranks."""


class RankHost(msgspec.Struct, frozen=True, array_like=True):
    """Where one rank runs. `addresses` are its `ip:port`s, of which jaccl and NCCL use the first one of rank 0.

    `ssh` is the name of another machine; None for a process of this one, or one started by hand. `rdma` names the
    device that leads to each rank, for jaccl.
    """

    addresses: list[str]
    ssh: str | None = None
    python: str | None = None
    """The Python of that machine, which has mlx-manager; None for the same path as here."""
    rdma: list[str | list[str] | None] = []
    by_hand: bool = False
    """Whether a user starts the rank, with `mlx-manager rank`."""


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """The worker is rank `rank` of a group of processes that run one model together by `mlx.distributed`."""

    rank: int
    backend: Backend
    parallel: Parallel
    hosts: list[RankHost]
    """One for each rank."""
    environment: dict[str, str] = {}
    """Variables for the processes of all ranks."""

    @property
    def host(self) -> RankHost:
        return self.hosts[self.rank]

    @property
    def join_seconds(self) -> int:
        return JOIN_BY_HAND_SECONDS if any(host.by_hand for host in self.hosts) else JOIN_SECONDS

    @property
    def ranks_here(self) -> int:
        """The number of ranks on the machine of the API process."""
        return sum(host.ssh is None and not host.by_hand for host in self.hosts)
