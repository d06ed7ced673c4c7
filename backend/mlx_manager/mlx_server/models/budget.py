"""Who may have how much of the machine: whether a model fits, who goes to make room, and each worker's share. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mlx_manager.mlx_server.engine.messages import Device, Limits
from mlx_manager.mlx_server.utils.memory import bytes_text

ROOM_TO_WORK = 10
"""A model needs a part in so many of its weights' size beside them, for KV caches and a step's own arrays."""
BUFFER_PART = 16
"""All workers together may keep freed memory for reuse of a part in so many of the budget, or `LEAST_BUFFER_BYTES`."""
LEAST_BUFFER_BYTES = 2**29


CUDA_SHARE = 0.9
"""The part of a CUDA device's memory that is the budget: each worker's context and libraries take some of the rest."""
CUDA_PREFIX_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Holding:
    """What a model that is loaded, or is going to be, keeps of the budget. `may_go` says that it may be evicted."""

    model_id: str
    nbytes: int
    last_used: float
    may_go: bool


def least_bytes(weights_bytes: int, kv_bytes: int = 0) -> int:
    """What a model must have: its weights, and the KV caches at work or a little room for some."""
    return weights_bytes + max(weights_bytes // ROOM_TO_WORK, kv_bytes)


@dataclass(frozen=True, slots=True)
class Budget:
    """What all workers together may take; `prefix_cache_bytes` of it for prefix caches.

    `of_device` names the settings that nobody has given, and that follow the memory of a GPU. Until that is known, one
    model at a time is let in, of any size: its worker tells it.
    """

    limit_bytes: int
    max_models: int
    prefix_cache_bytes: int
    of_device: frozenset[str] = frozenset()
    knows_device: bool = True

    def on_device(self, device: Device) -> "Budget":
        """As it is for workers on that device."""
        limit_bytes, prefix_bytes = self.limit_bytes, self.prefix_cache_bytes
        if device.memory_bytes is not None and "max_memory_gb" in self.of_device:
            cuda_bytes = int(device.memory_bytes * CUDA_SHARE)
            limit_bytes = cuda_bytes if device.backend == "cuda" else min(limit_bytes, device.memory_bytes)
        if device.memory_bytes is not None and device.backend == "cuda":
            limit_bytes = min(limit_bytes, device.memory_bytes)
            if "prefix_cache_gb" in self.of_device:
                prefix_bytes = int(device.memory_bytes * CUDA_PREFIX_SHARE)
        return replace(self, limit_bytes=limit_bytes, prefix_cache_bytes=prefix_bytes, knows_device=True)

    def fits(self, needed_bytes: int, staying: Iterable[Holding]) -> bool:
        sizes = [holding.nbytes for holding in staying]
        if not self.knows_device:
            return not sizes
        return len(sizes) < self.max_models and sum(sizes) + needed_bytes <= self.limit_bytes

    def victims(self, needed_bytes: int, holdings: Iterable[Holding]) -> list[Holding] | None:
        """Who goes to make room: the least recently used that may, and none in vain. None when no eviction helps."""
        staying, going = list(holdings), list[Holding]()
        for candidate in sorted((one for one in staying if one.may_go), key=lambda one: one.last_used):
            if self.fits(needed_bytes, staying):
                break
            staying.remove(candidate)
            going.append(candidate)
        if not self.fits(needed_bytes, staying):
            return None
        for spared in reversed(list(going)):  # one that was used later and is larger may have made its going needless
            if self.fits(needed_bytes, [*staying, spared]):
                staying.append(spared)
                going.remove(spared)
        return going

    def no_room_message(self, model_id: str, needed_bytes: int, holdings: Iterable[Holding]) -> str:
        holders = list(holdings)
        users = ", ".join(f"{one.model_id} ({bytes_text(one.nbytes)})" for one in holders) or "none"
        used_bytes = sum(one.nbytes for one in holders)
        return (
            f"There is no room for model {model_id!r}: it needs {bytes_text(needed_bytes)} beside the "
            f"{bytes_text(used_bytes)} of {bytes_text(self.limit_bytes)} in use, and at most {self.max_models} models "
            f"may be loaded. Models in use: {users}. Try again when they are idle, or raise MLX_SERVER_MAX_MEMORY_GB "
            "or MLX_SERVER_MAX_MODELS."
        )

    def shares(self, holdings: Iterable[Holding]) -> dict[str, Limits]:
        """Everybody gets what it must have, and the same part of the rest."""
        holders = list(holdings)
        count = max(1, len(holders))
        buffer_bytes = max(LEAST_BUFFER_BYTES, self.limit_bytes // BUFFER_PART)
        rest = max(0, self.limit_bytes - sum(holding.nbytes for holding in holders)) // count
        return {
            holding.model_id: Limits(holding.nbytes + rest, buffer_bytes // count, self.prefix_cache_bytes // count)
            for holding in holders
        }
