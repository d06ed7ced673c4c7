"""Keeps a rank's part of a model, by mlx-lm's own `shard` and `pipeline`. Runs in the worker."""

from typing import Any

import mlx.nn as nn

from mlx_manager.mlx_server.engine.membership import Parallel
from mlx_manager.mlx_server.engine.ranks import Ranks, UnusableRanks


def shard(model: nn.Module, ranks: Ranks, parallel: Parallel) -> None:
    """Divides a model whose weights are not in memory yet. Raises UnusableRanks if mlx-lm cannot divide it so."""
    if parallel == "pipeline":
        inner: Any = getattr(model, "model", None)
        if not hasattr(inner, "pipeline"):
            raise UnusableRanks("mlx-lm has no pipeline for its architecture. Use --parallel tensor, or one machine.")
        inner.pipeline(ranks.group)
        return
    if not hasattr(model, "shard"):
        raise UnusableRanks("mlx-lm cannot shard its architecture. Use --parallel pipeline, or one machine.")
    try:
        model.shard(ranks.group)
    except ValueError as exc:  # MLX splits only into equal parts
        raise UnusableRanks(
            f"its weights cannot be divided among {ranks.size} ranks: {exc}. Use other --ranks."
        ) from exc
