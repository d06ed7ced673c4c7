"""Plans the ranks of a model: where they run, how they divide it, and the memory that they need on this machine.

Reads files: call it in a thread. Starts nothing.
"""

from pathlib import Path

from mlx_manager.mlx_server.engine.membership import Backend, Membership
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.parallelism import Indivisible, choose_parallel
from mlx_manager.mlx_server.models.rank_hosts import BadHosts, HostsFile, local_hosts, read_hosts
from mlx_manager.mlx_server.models.weights import replicated_bytes, weights_size
from mlx_manager.mlx_server.rank_settings import RankSettings
from mlx_manager.mlx_server.utils.mlx_backend import build_in_place


class UnusableGroup(Exception):
    """The model cannot run on these ranks; the message says why, with the remedy."""


def plan_group(entry: ModelEntry, folder: Path) -> Membership | None:
    """The membership of rank 0. None for a model in one process. Raises UnusableGroup."""
    wanted = entry.ranks
    if wanted is None:
        return None
    if entry.adapter is not None:
        raise UnusableGroup("a model over several ranks cannot have an adapter. Remove adapter, or ranks and hosts.")
    if entry.dequantize:
        raise UnusableGroup("a model over several ranks cannot be dequantized. Remove dequantize, or ranks and hosts.")
    if entry.kind_in(folder) != "generate":
        raise UnusableGroup("only generative models run over several ranks. Remove ranks and hosts.")
    return membership_of(wanted, folder, rank=0)


def membership_of(wanted: RankSettings, folder: Path, rank: int) -> Membership:
    """Raises UnusableGroup."""
    try:
        file = read_hosts(wanted.hosts) if wanted.hosts is not None else HostsFile(local_hosts(wanted.ranks or 1))
        parallel = choose_parallel(folder, len(file.hosts), wanted.parallel)
    except (BadHosts, Indivisible) as exc:
        raise UnusableGroup(str(exc)) from exc
    backend = wanted.backend or file.backend or _default_backend()
    if backend == "jaccl" and any(len(host.rdma) != len(file.hosts) for host in file.hosts):
        raise UnusableGroup(
            "jaccl needs the RDMA devices of each host: a list rdma in the hosts file, with null for the host itself. "
            "mlx.distributed_config writes it."
        )
    return Membership(rank, backend, parallel, file.hosts, file.environment)


def memory_here(folder: Path, membership: Membership | None, *, dequantize: bool = False) -> int:
    """The memory that the weights need on this machine, which has rank 0 and the ranks without another host."""
    whole = weights_size(folder, dequantize=dequantize).memory_bytes
    if membership is None:
        return whole
    everywhere = replicated_bytes(folder)
    part = (whole - everywhere) // len(membership.hosts) + everywhere
    return part * membership.ranks_here


def _default_backend() -> Backend:
    build = build_in_place()
    return "nccl" if build is not None and "cuda" in build else "ring"
