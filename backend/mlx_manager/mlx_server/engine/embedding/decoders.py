"""Decoders as embedding models, from mlx-lm's modules: causal ones unchanged, Gemma 3 with bidirectional attention."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_model

from mlx_manager.mlx_server.engine.embedding.layers import window_mask
from mlx_manager.mlx_server.engine.model_config import complete, model_classes


def load_decoder(folder: Path, config: dict[str, Any]) -> "CausalDecoder | BidirectionalGemma":
    """The decoder with its weights, without the language model head."""
    config = complete({**config, "tie_word_embeddings": True})
    model, _ = load_model(folder, lazy=True, model_config=config, get_model_classes=_classes_without_head)
    if config["model_type"] == "gemma3_text":
        return BidirectionalGemma(model.model, config["sliding_window"])
    return CausalDecoder(model.model)


def _classes_without_head(config: dict[str, Any]) -> tuple[type[nn.Module], Any]:
    model_class, args_class = model_classes(config)

    class Headless(model_class):  # type: ignore[misc, valid-type]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            """Adds the prefix `model.` of mlx-lm, which some embedding models are saved without."""
            kept = {name: array for name, array in weights.items() if not name.startswith("lm_head.")}
            whole = {name if name.startswith("model.") else f"model.{name}": array for name, array in kept.items()}
            sanitized: dict[str, mx.array] = super().sanitize(whole) if hasattr(model_class, "sanitize") else whole
            return sanitized

    return Headless, args_class


class CausalDecoder(nn.Module):
    """Needs no padding mask, because causal attention never reaches the padding on the right."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def __call__(self, tokens: mx.array, types: mx.array, mask: mx.array | None) -> mx.array:
        return self.decoder(tokens)


class BidirectionalGemma(nn.Module):
    """EmbeddingGemma (https://arxiv.org/abs/2509.20354). A local layer attends to half of `window` on each side."""

    def __init__(self, decoder: nn.Module, window: int) -> None:
        super().__init__()
        self.decoder = decoder
        self._reach = window // 2

    def __call__(self, tokens: mx.array, types: mx.array, mask: mx.array | None) -> mx.array:
        near = window_mask(mask, tokens.shape[1], self._reach)
        h = self.decoder.embed_tokens(tokens)
        h = h * mx.array(h.shape[-1] ** 0.5, h.dtype)
        for layer in self.decoder.layers:
            h = layer(h, near if layer.self_attn.is_sliding else mask)
        return self.decoder.norm(h)
