"""MLX memory readings and limits of this process. Imports MLX only when a function needs it."""

import ctypes
import sys

BYTES_PER_GB = 1024**3


def bytes_text(nbytes: int) -> str:
    """Readable text in GB (1024**3 bytes), or in MB below a tenth of a GB."""
    return f"{nbytes / BYTES_PER_GB:.2f} GB" if nbytes >= BYTES_PER_GB / 10 else f"{nbytes / 1024**2:.2f} MB"


def get_memory_usage() -> dict[str, float]:
    """MLX's memory in this process, in GB (1024**3 bytes): active arrays, their peak, and the buffer cache."""
    import mlx.core as mx

    return {
        "active_gb": mx.get_active_memory() / BYTES_PER_GB,
        "peak_gb": mx.get_peak_memory() / BYTES_PER_GB,
        "cache_gb": mx.get_cache_memory() / BYTES_PER_GB,
    }


def set_memory_limit(limit_gb: float) -> None:
    """Limits MLX to `limit_gb` GB in this process. Allocations beyond it wait for free memory."""
    import mlx.core as mx

    mx.set_memory_limit(int(limit_gb * BYTES_PER_GB))


def clear_cache() -> None:
    """Returns MLX's cached buffers to the system."""
    import mlx.core as mx

    mx.clear_cache()
    trim_allocator()


def trim_allocator() -> None:
    """Returns memory that glibc has freed but retained to the system. Does not touch MLX's buffers."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def reset_peak_memory() -> None:
    import mlx.core as mx

    mx.reset_peak_memory()
