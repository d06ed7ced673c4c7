"""ModernBERT (https://arxiv.org/abs/2412.13663), and its classification head."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_manager.mlx_server.engine.embedding.layers import activation, attend, window_mask
from mlx_manager.mlx_server.engine.embedding.recipe import UnusableModel


def rename(name: str, is_classifier: bool) -> str | None:
    """The weight's name in this module; None for an unused weight."""
    if name.startswith(("decoder.", *([] if is_classifier else ["head.", "classifier."]))):
        return None
    return (
        name.removeprefix("model.").replace("embeddings.norm.", "embeddings_norm.").replace("embeddings.tok_", "tok_")
    )


class ModernBert(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.embeddings_norm = _norm(config)
        self.layers = [ModernBertLayer(config, index) for index in range(config["num_hidden_layers"])]
        self.final_norm = _norm(config)
        self._reach = config.get("local_attention", 128) // 2

    def __call__(self, tokens: mx.array, types: mx.array, mask: mx.array | None) -> mx.array:
        """(B, L) token ids to (B, L, D). ModernBERT has no segments."""
        near = window_mask(mask, tokens.shape[1], self._reach)
        h = self.embeddings_norm(self.tok_embeddings(tokens))
        for layer in self.layers:
            h = layer(h, near if layer.is_local else mask)
        return self.final_norm(h)


class ModernBertLayer(nn.Module):
    def __init__(self, config: dict[str, Any], index: int) -> None:
        super().__init__()
        self.is_local = _is_local(config, index)
        self.attn_norm = _norm(config) if index > 0 else nn.Identity()
        self.attn = ModernBertAttention(config, _rope_base(config, self.is_local))
        self.mlp_norm = _norm(config)
        self.mlp = ModernBertMLP(config)

    def __call__(self, h: mx.array, mask: mx.array | None) -> mx.array:
        h = h + self.attn(self.attn_norm(h), mask)
        return h + self.mlp(self.mlp_norm(h))


class ModernBertAttention(nn.Module):
    def __init__(self, config: dict[str, Any], rope_base: float) -> None:
        super().__init__()
        size, bias = config["hidden_size"], config.get("attention_bias", False)
        self._heads, self._rope_base = config["num_attention_heads"], rope_base
        self.Wqkv, self.Wo = nn.Linear(size, 3 * size, bias=bias), nn.Linear(size, size, bias=bias)

    def __call__(self, h: mx.array, mask: mx.array | None) -> mx.array:
        q, k, v = mx.split(self.Wqkv(h), 3, axis=-1)
        return self.Wo(attend(q, k, v, self._heads, mask, self._rope_base))


class ModernBertMLP(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size, inner, bias = config["hidden_size"], config["intermediate_size"], config.get("mlp_bias", False)
        self._act = activation(config.get("hidden_activation", "gelu"))
        self.Wi, self.Wo = nn.Linear(size, 2 * inner, bias=bias), nn.Linear(inner, size, bias=bias)

    def __call__(self, h: mx.array) -> mx.array:
        inputs, gate = mx.split(self.Wi(h), 2, axis=-1)
        return self.Wo(self._act(inputs) * gate)


class ModernBertClassifier(nn.Module):
    """One logit from the first token's hidden state, or from the mean of all."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size = config["hidden_size"]
        self._takes_mean = config.get("classifier_pooling", "cls") == "mean"
        self._act = activation(config.get("classifier_activation", "gelu"))
        self.head = {"dense": nn.Linear(size, size, bias=config.get("classifier_bias", False)), "norm": _norm(config)}
        self.classifier = nn.Linear(size, 1)

    def __call__(self, h: mx.array, lengths: mx.array) -> mx.array:
        """(B, L, D) to (B, 1)."""
        pooled = h[:, 0]
        if self._takes_mean:
            is_text = (mx.arange(h.shape[1])[None] < lengths[:, None])[..., None]
            pooled = mx.where(is_text, h, 0).sum(axis=1) / lengths[:, None]
        return self.classifier(self.head["norm"](self._act(self.head["dense"](pooled))))


def _norm(config: dict[str, Any]) -> nn.LayerNorm:
    return nn.LayerNorm(config["hidden_size"], config.get("norm_eps", 1e-5), bias=config.get("norm_bias", False))


def _is_local(config: dict[str, Any], index: int) -> bool:
    types = config.get("layer_types")
    if types is not None:
        return bool(types[index] == "sliding_attention")
    return bool(index % config.get("global_attn_every_n_layers", 3))


def _rope_base(config: dict[str, Any], is_local: bool) -> float:
    name, old, default = (
        ("sliding_attention", "local_rope_theta", 10_000.0)
        if is_local
        else ("full_attention", "global_rope_theta", 160_000.0)
    )
    parameters = (config.get("rope_parameters") or {}).get(name) or {}
    if config.get("rope_scaling") is not None or parameters.get("rope_type", "default") != "default":
        raise UnusableModel("its rotary embedding is scaled, which is not supported for ModernBERT. Use another model.")
    return float(parameters.get("rope_theta", config.get(old, default)))
