"""The settings of a model that runs over several processes or machines. Knows no models."""

import os
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

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
