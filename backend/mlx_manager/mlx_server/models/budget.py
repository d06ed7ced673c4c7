"""The memory budget of all workers: whether a model fits, which models to evict, each worker's share. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mlx_manager.mlx_server.engine.messages import Device, Limits
from mlx_manager.mlx_server.utils.macos import MemoryPressure
from mlx_manager.mlx_server.utils.memory import bytes_text

WORKING_PART = 10
"""Beside its weights a model needs 1/10 of their size, for KV caches and the arrays of a step."""
BUFFER_PART = 16
"""All workers together may keep 1/16 of the budget, or `MIN_BUFFER_BYTES`, of freed memory for reuse."""
MIN_BUFFER_BYTES = 2**29


CUDA_SHARE = 0.9
"""The budget as a share of a CUDA device's memory. Each worker's context and libraries use some of the rest."""
CUDA_PREFIX_SHARE = 0.1
PREFIX_DIVISORS = {MemoryPressure.NORMAL: 1, MemoryPressure.WARNING: 2}
"""Under the system's memory pressure the prefix caches get a part of their memory. None when it is critical."""


@dataclass(frozen=True, slots=True)
class Holding:
    """The bytes of the budget that a model holds, or has reserved for its load."""

    model_id: str
    nbytes: int
    last_used: float
    evictable: bool


def min_bytes(weights_bytes: int, kv_bytes: int = 0) -> int:
    """The least memory that a model needs: its weights, and its KV caches in use or working memory for some."""
    return weights_bytes + max(weights_bytes // WORKING_PART, kv_bytes)


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory of all workers together, of which prefix caches may use `prefix_cache_bytes`.

    `device_defaults` names the unset settings whose defaults depend on the memory of a GPU. Until the first worker
    reports that memory, only one model fits at a time, of any size. Under `pressure` the workers keep fewer prefixes,
    and no freed memory.
    """

    limit_bytes: int
    max_models: int
    prefix_cache_bytes: int
    device_defaults: frozenset[str] = frozenset()
    knows_device: bool = True
    pressure: MemoryPressure = MemoryPressure.NORMAL

    def on_device(self, device: Device) -> "Budget":
        """The budget for workers on that device."""
        limit_bytes, prefix_bytes = self.limit_bytes, self.prefix_cache_bytes
        if device.memory_bytes is not None and "max_memory_gb" in self.device_defaults:
            cuda_bytes = int(device.memory_bytes * CUDA_SHARE)
            limit_bytes = cuda_bytes if device.backend == "cuda" else min(limit_bytes, device.memory_bytes)
        if device.memory_bytes is not None and device.backend == "cuda":
            limit_bytes = min(limit_bytes, device.memory_bytes)
            if "prefix_cache_gb" in self.device_defaults:
                prefix_bytes = int(device.memory_bytes * CUDA_PREFIX_SHARE)
        return replace(self, limit_bytes=limit_bytes, prefix_cache_bytes=prefix_bytes, knows_device=True)

    def fits(self, needed_bytes: int, staying: Iterable[Holding]) -> bool:
        sizes = [holding.nbytes for holding in staying]
        if not self.knows_device:
            return not sizes
        return len(sizes) < self.max_models and sum(sizes) + needed_bytes <= self.limit_bytes

    def victims(self, needed_bytes: int, holdings: Iterable[Holding]) -> list[Holding] | None:
        """The fewest evictable models to unload, least recently used first. None when no eviction frees enough."""
        staying, going = list(holdings), list[Holding]()
        for candidate in sorted((one for one in staying if one.evictable), key=lambda one: one.last_used):
            if self.fits(needed_bytes, staying):
                break
            staying.remove(candidate)
            going.append(candidate)
        if not self.fits(needed_bytes, staying):
            return None
        for spared in reversed(list(going)):  # a larger, later victim may have made this eviction needless
            if self.fits(needed_bytes, [*staying, spared]):
                staying.append(spared)
                going.remove(spared)
        return going

    def no_room_message(self, model_id: str, needed_bytes: int, holdings: Iterable[Holding]) -> str:
        holders = list(holdings)
        users = ", ".join(f"{one.model_id} ({bytes_text(one.nbytes)})" for one in holders) or "none"
        used_bytes = sum(one.nbytes for one in holders)
        return (
            f"Not enough memory for model {model_id!r}: it needs {bytes_text(needed_bytes)}, with "
            f"{bytes_text(used_bytes)} of {bytes_text(self.limit_bytes)} in use. At most {self.max_models} models "
            f"may be loaded. Models in use: {users}. Retry when they are idle, or raise MLX_SERVER_MAX_MEMORY_GB "
            "or MLX_SERVER_MAX_MODELS."
        )

    def shares(self, holdings: Iterable[Holding]) -> dict[str, Limits]:
        """Each worker's limits: the bytes that its model holds, and an equal share of the rest."""
        holders = list(holdings)
        count = max(1, len(holders))
        buffer_bytes = max(MIN_BUFFER_BYTES, self.limit_bytes // BUFFER_PART)
        if self.pressure is not MemoryPressure.NORMAL:
            buffer_bytes = 0
        divisor = PREFIX_DIVISORS.get(self.pressure)
        prefix_bytes = self.prefix_cache_bytes // divisor if divisor is not None else 0
        rest = max(0, self.limit_bytes - sum(holding.nbytes for holding in holders)) // count
        return {
            holding.model_id: Limits(holding.nbytes + rest, buffer_bytes // count, prefix_bytes // count)
            for holding in holders
        }
