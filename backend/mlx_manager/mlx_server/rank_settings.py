"""The settings of a model that runs over several processes or machines. Knows no models."""

import os
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlx_manager.mlx_server.security_settings import BLANK_IS_NONE, UserPath

MAX_RANKS = 64
RankBackend = Literal["ring", "jaccl", "nccl"]
ParallelChoice = Literal["auto", "tensor", "pipeline"]


class RankSettings(BaseModel):
    """`ranks` processes on this machine, or one for each host of the `hosts` file. Without both: one process."""

    ranks: int | None = Field(default=None, ge=1, le=MAX_RANKS)
    """How many processes on this machine share the model."""
    hosts: Annotated[UserPath | None, BLANK_IS_NONE] = None
    """A hosts file of MLX: the machines that share the model."""
    backend: RankBackend | None = None
    """How the ranks communicate; defaults to the hosts file's, else to nccl for NVIDIA GPUs and ring elsewhere."""
    parallel: ParallelChoice = "auto"
    """How the model is divided."""

    @property
    def is_group(self) -> bool:
        return self.hosts is not None or (self.ranks is not None and self.ranks > 1)

    @model_validator(mode="after")
    def _check_hosts(self) -> "RankSettings":
        if self.hosts is not None and self.ranks is not None:
            raise ValueError("ranks and hosts are mutually exclusive. Remove one.")
        if not self.is_group and (self.backend is not None or self.parallel != "auto"):
            raise ValueError("backend and parallel have no effect on one process. Give ranks or hosts, or remove them.")
        if self.hosts is not None and not os.path.isfile(self.hosts):
            raise ValueError(f"hosts: there is no file {self.hosts}. Correct the path.")
        return self


class RanksSettings(BaseModel):
    """The default model over several machines or GPUs"""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())

    ranks: int | None = Field(default=None, ge=1, le=MAX_RANKS)
    """The number of processes on this machine that share the default model; `--ranks` overrides it."""
    rank_hosts: Annotated[UserPath | None, BLANK_IS_NONE] = None
    """A hosts file of MLX with the machines that share the default model; `--hosts` overrides it."""
    rank_backend: Annotated[RankBackend | None, BLANK_IS_NONE] = None
    """How ranks communicate: `ring` (TCP), `jaccl` (RDMA) or `nccl` (NVIDIA GPUs). Default: as in the hosts file, else
    `nccl` on NVIDIA GPUs and `ring` elsewhere."""
    rank_parallel: ParallelChoice = "auto"
    """How ranks share the model: `tensor` (a part of each layer), `pipeline` (some layers), or `auto`."""

    @property
    def default_ranks(self) -> RankSettings | None:
        """None if no setting concerns the ranks of the default model."""
        if self.ranks is None and self.rank_hosts is None:
            return None
        hosts, backend, parallel = self.rank_hosts, self.rank_backend, self.rank_parallel
        return RankSettings(ranks=self.ranks, hosts=hosts, backend=backend, parallel=parallel)

    @model_validator(mode="after")
    def _check_ranks(self) -> "RanksSettings":
        if self.rank_hosts is not None and self.ranks is not None:
            raise ValueError("ranks and rank_hosts are mutually exclusive. Remove one.")
        is_given = self.rank_backend is not None or self.rank_parallel != "auto"
        if is_given and self.rank_hosts is None and (self.ranks is None or self.ranks == 1):
            raise ValueError("rank_backend and rank_parallel have no effect on one process. Set ranks or rank_hosts.")
        if self.rank_hosts is not None and not os.path.isfile(self.rank_hosts):
            raise ValueError(f"rank_hosts: there is no file {self.rank_hosts}. Correct the path.")
        return self
