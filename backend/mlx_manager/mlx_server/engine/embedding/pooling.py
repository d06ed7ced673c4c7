"""Pools hidden states to one vector for each text, like the modules of sentence-transformers."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_manager.mlx_server.engine.embedding.recipe import UnusableModel, read_json


def pool(h: mx.array, lengths: mx.array, modes: tuple[str, ...]) -> mx.array:
    """(B, L, D) and (B,) to (B, D), or (B, D times the modes)."""
    return mx.concatenate([_pool(h, lengths, mode) for mode in modes], axis=-1)


def _pool(h: mx.array, lengths: mx.array, mode: str) -> mx.array:
    if mode == "cls":
        return h[:, 0]
    if mode == "lasttoken":
        return h[mx.arange(h.shape[0]), lengths - 1]
    places = mx.arange(h.shape[1])[None]
    is_text = places < lengths[:, None]
    if mode == "max":
        return mx.where(is_text[..., None], h, -mx.inf).max(axis=1)
    weights = mx.where(is_text, places + 1 if mode == "weightedmean" else 1, 0).astype(mx.float32)
    total = weights.sum(axis=1, keepdims=True)
    if mode == "mean_sqrt_len_tokens":
        total = mx.sqrt(total)
    return ((weights / total)[:, None] @ h.astype(mx.float32))[:, 0]


class Dense(nn.Module):
    """A linear layer with an activation, from a folder such as `2_Dense`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config, file = read_json(folder / "config.json"), folder / "model.safetensors"
        if not file.is_file():
            raise UnusableModel(f"there is no {folder.name}/model.safetensors. Download the model again.")
        name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
        if name not in ("Identity", "Tanh"):
            raise UnusableModel(f"the activation {name!r} of its {folder.name} is not supported. Use another model.")
        self._has_tanh = name == "Tanh"
        self.linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        self.load_weights(str(file))

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        return mx.tanh(y) if self._has_tanh else y


def normalized(vectors: mx.array) -> mx.array:
    return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
