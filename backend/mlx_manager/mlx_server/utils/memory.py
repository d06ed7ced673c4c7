"""MLX memory readings and limits of this process. MLX is imported on use, so that importing this costs nothing."""

import ctypes
import sys

BYTES_PER_GB = 1024**3


def bytes_text(nbytes: int) -> str:
    """For people: in GB of 1024**3 bytes, or in MB where that is less than a tenth of one."""
    return f"{nbytes / BYTES_PER_GB:.2f} GB" if nbytes >= BYTES_PER_GB / 10 else f"{nbytes / 1024**2:.2f} MB"


def get_memory_usage() -> dict[str, float]:
    """What MLX holds in this process, in GB of 1024**3 bytes: active arrays, their peak, and the buffer cache."""
    import mlx.core as mx

    return {
        "active_gb": mx.get_active_memory() / BYTES_PER_GB,
        "peak_gb": mx.get_peak_memory() / BYTES_PER_GB,
        "cache_gb": mx.get_cache_memory() / BYTES_PER_GB,
    }


def set_memory_limit(limit_gb: float) -> None:
    """Asks MLX to keep this process below `limit_gb` GB; beyond it, allocations wait for memory to come free."""
    import mlx.core as mx

    mx.set_memory_limit(int(limit_gb * BYTES_PER_GB))


def clear_cache() -> None:
    """Gives the buffers that MLX keeps for reuse back to the system."""
    import mlx.core as mx

    mx.clear_cache()
    trim_allocator()


def trim_allocator() -> None:
    """Gives freed memory that glibc holds on to back to the system. MLX's own buffers stay."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def reset_peak_memory() -> None:
    import mlx.core as mx

    mx.reset_peak_memory()
