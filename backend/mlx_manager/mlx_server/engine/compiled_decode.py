"""The model call of a decode step, whose graph is built once for each size of batch. Runs in the worker.

Python takes about 0.1 ms a layer to build the graph of a step, and a GPU may wait for it. A compiled call replays it.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_manager.mlx_server.engine.rows import SlotsKVCache, Span


class CompiledDecode:
    """In place of a model whose layers are all in slots of repeating sizes. Is called as mlx-lm's models are.

    MLX keeps the graph of each size. A single row reads its exact length without a mask, so its size never repeats: the
    model itself runs then, and for a batch whose rows are all empty.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._compiled = mx.compile(self._step)

    def __call__(self, tokens: mx.array, cache: list[SlotsKVCache]) -> mx.array:
        """Logits (R, 1, V) after one token of each row, `tokens` (R, 1)."""
        span = cache[0].span
        if span.is_even or any(layer.empty() for layer in cache):
            logits: mx.array = self._model(tokens, cache=cache)
            return logits
        states = [layer.state for layer in cache]
        logits, states = self._compiled(tokens, span.starts, states)
        for layer, state in zip(cache, states, strict=True):
            layer.keys, layer.values = state
        return logits

    def _step(self, tokens: mx.array, starts: mx.array, states: list[list[mx.array]]) -> tuple[mx.array, Any]:
        """A function of arrays alone. `states`: keys and values of each layer."""
        span = Span.of_step(starts, states[0][0].shape[2])
        cache = [SlotsKVCache(span, *state) for state in states]
        return self._model(tokens, cache=cache), [layer.state for layer in cache]


Decoder = nn.Module | CompiledDecode
"""What runs the decode steps of a model."""
