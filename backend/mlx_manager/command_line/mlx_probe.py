"""Tests MLX in an environment like a worker's, in its own process, because a broken MLX aborts the process.

Prints one line of JSON, a `Probe`.
"""

import dataclasses
import importlib.metadata
import json
import sys
import time
from pathlib import Path

ROUNDS = 5
SHAPE = (512, 512, 1536)
"""A matrix product of prefill's size: (512, 512) by (512, 1536)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    version: str
    device: str
    gigaflops: float
    """For a float32 matrix product."""
    openblas: bool
    """Whether OpenBLAS is loaded into the process; known only on Linux."""
    generation: str
    """The GPU's architecture, such as `applegpu_g15s`; empty for a CPU."""
    memory_bytes: int | None
    """Memory of a CUDA device, or the limit that Metal recommends; None for a CPU."""


def probe() -> Probe:
    import mlx.core as mx

    device = mx.device_info()
    memory = device.get("max_recommended_working_set_size", device.get("total_memory"))
    return Probe(
        version=importlib.metadata.version("mlx"),
        device=str(mx.default_device()),
        gigaflops=_gigaflops(),
        openblas=_has_openblas(),
        generation=str(device.get("architecture", "")),
        memory_bytes=None if memory is None else int(memory),
    )


def _gigaflops() -> float:
    """The fastest of several rounds; the first is a warm-up."""
    import mlx.core as mx

    rows, inner, columns = SHAPE
    left, right = mx.random.normal((rows, inner)), mx.random.normal((inner, columns))
    mx.eval(left, right)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        mx.eval(left @ right)
        seconds.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / min(seconds) / 1e9


def _has_openblas() -> bool:
    maps = Path("/proc/self/maps")
    return sys.platform == "linux" and "openblas" in maps.read_text("utf-8", "replace")


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(probe())))
