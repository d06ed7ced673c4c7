"""Whether MLX compiles functions here. The CPU build needs a C++ compiler; without one it calls them as they are."""

import mlx.core as mx
import pytest


def mlx_compiles() -> bool:
    """MLX calls a function once for each shape if it can compile it, or twice if that is the first of a process."""
    calls: list[mx.array] = []

    @mx.compile
    def plus_one(x: mx.array) -> mx.array:
        calls.append(x)
        return x + 1

    for _ in range(3):
        plus_one(mx.array(1.0))
    return len(calls) < 3


needs_compiler = pytest.mark.skipif(not mlx_compiles(), reason="MLX finds no C++ compiler")
