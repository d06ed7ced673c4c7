"""Nomic BERT, of nomic-embed-text (https://arxiv.org/abs/2402.01613): BERT with rotary positions and gated MLPs.

It reads the config.json that Nomic publishes, and the one of transformers 5.
"""

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_manager.mlx_server.engine.embedding.layers import activation, attend
from mlx_manager.mlx_server.engine.embedding.recipe import UnusableModel

_RENAMED = (
    (r"^(nomic_bert|bert)\.", ""),
    (r"^encoder\.", ""),
    (r"^emb_ln\.", "norm."),
    (r"^embeddings\.LayerNorm\.", "norm."),
    (r"^embeddings\.", ""),
    (r"\.(attn\.out_proj|self_attn\.o_proj)\.", ".out."),
    (r"\.attn\.Wqkv\.", ".qkv."),
    (r"\.mlp\.(fc11|up_proj)\.", ".up."),
    (r"\.mlp\.(fc12|gate_proj)\.", ".gate."),
    (r"\.mlp\.(fc2|down_proj)\.", ".down."),
    (r"\.post_attention_layernorm\.", ".norm1."),
    (r"\.post_mlp_layernorm\.", ".norm2."),
)


def rename(name: str, is_classifier: bool) -> str | None:
    """The weight's name in this module; None for an unused weight."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return None if name.startswith(("cls.", "pooler.", "position_ids")) or name.endswith("inv_freq") else name


def join_projections(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Joins the projections of queries, keys and values, which transformers saves separately."""
    joined = {name: array for name, array in weights.items() if ".self_attn." not in name}
    for name in weights:
        if ".self_attn.q_proj." in name:
            parts = [weights[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            joined[name.replace("self_attn.q_proj", "qkv")] = mx.concatenate(parts)
    return joined


class NomicBert(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        config = _renamed(config)
        _check(config)
        size = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], size)
        self.token_type_embeddings = nn.Embedding(config.get("type_vocab_size", 2), size)
        self.norm = nn.LayerNorm(size, config["layer_norm_eps"])
        self.layers = [NomicLayer(config) for _ in range(config["num_hidden_layers"])]

    def __call__(self, tokens: mx.array, types: mx.array, mask: mx.array | None) -> mx.array:
        """(B, L) token ids and segments to (B, L, D)."""
        h = self.norm(self.word_embeddings(tokens) + self.token_type_embeddings(types))
        for layer in self.layers:
            h = layer(h, mask)
        return h


class NomicLayer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size, inner, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self._heads, self._rope_base = config["num_attention_heads"], config["rope_theta"]
        self._act = activation(config["hidden_act"])
        self.qkv = nn.Linear(size, 3 * size, bias=config.get("qkv_proj_bias", False))
        self.out = nn.Linear(size, size, bias=config.get("qkv_proj_bias", False))
        self.up = nn.Linear(size, inner, bias=config.get("mlp_fc1_bias", False))
        self.gate = nn.Linear(size, inner, bias=config.get("mlp_fc1_bias", False))
        self.down = nn.Linear(inner, size, bias=config.get("mlp_fc2_bias", False))
        self.norm1, self.norm2 = nn.LayerNorm(size, eps), nn.LayerNorm(size, eps)

    def __call__(self, h: mx.array, mask: mx.array | None) -> mx.array:
        q, k, v = mx.split(self.qkv(h), 3, axis=-1)
        h = self.norm1(h + self.out(attend(q, k, v, self._heads, mask, self._rope_base)))
        return self.norm2(h + self.down(self.up(h) * self._act(self.gate(h))))


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    """Renames Nomic's own settings to those of transformers."""
    rope = config.get("rope_parameters") or {}
    own = {
        "hidden_size": config.get("n_embd", 768),
        "num_hidden_layers": config.get("n_layer", 12),
        "num_attention_heads": config.get("n_head", 12),
        "intermediate_size": config.get("n_inner") or 4 * config.get("n_embd", config.get("hidden_size", 768)),
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-12),
        "hidden_act": config.get("activation_function", "silu"),
        "rope_theta": float(rope.get("rope_theta", config.get("rotary_emb_base", 1000.0))),
    }
    return own | config


def _check(config: dict[str, Any]) -> None:
    """Raises UnusableModel for settings that change the output and are not implemented."""
    neutral = {
        "prenorm": (False,),
        "rotary_emb_fraction": (1.0,),
        "rotary_emb_interleaved": (False,),
        "rotary_scaling_factor": (None,),
        "use_rms_norm": (False, None),
        "num_experts": (0, None),
        "moe_every_n_layers": (0, -1, None),
        "parallel_block": (False,),
    }
    for name, values in neutral.items():
        if name in config and config[name] not in values:
            raise UnusableModel(
                f"its config.json sets {name} = {config[name]!r}, which is not supported for Nomic BERT. Use "
                "another model."
            )
    if ((config.get("rope_parameters") or {}).get("rope_type", "default")) != "default":
        raise UnusableModel("its rotary embedding is scaled, which is not supported for Nomic BERT. Use another model.")
