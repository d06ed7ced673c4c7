"""Forward passes of every embedding family in float64 numpy: one text, no padding, weights by their published names.

They follow the papers and transformers' modules, and share no code with the server.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
Config = Mapping[str, Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def gelu_tanh(x: Array) -> Array:
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def linear(weights: Weights, name: str, x: Array) -> Array:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def layer_norm(weights: Weights, name: str, x: Array, eps: float) -> Array:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weights[f"{name}.weight"]
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def rotate(x: Array, base: float) -> Array:
    """Rotary positions of (heads, L, D), first half against second half."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] / base ** (np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=-1
    )


def heads_of(x: Array, heads: int) -> Array:
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def attention(q: Array, k: Array, v: Array, sees: NDArray[np.bool_], scale: float | None = None) -> Array:
    """(heads, L, D) each, `sees[i, j]` where i attends to j, to (L, heads x D)."""
    k, v = (np.repeat(part, len(q) // len(part), axis=0) for part in (k, v))
    scores = q @ k.transpose(0, 2, 1) * (scale if scale is not None else q.shape[-1] ** -0.5)
    scores = np.where(sees, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return out.transpose(1, 0, 2).reshape(q.shape[1], -1)


def everywhere(length: int) -> NDArray[np.bool_]:
    return np.ones((length, length), bool)


def bert(config: Config, weights: Weights, tokens: list[int], second_at: int = 0, prefix: str = "") -> Array:
    types = np.array([0 < second_at <= place for place in range(len(tokens))], int)
    first = config["pad_token_id"] + 1 if config["model_type"] != "bert" else 0
    if config.get("type_vocab_size", 2) == 1:
        types[:] = 0
    name = f"{prefix}embeddings"
    h = weights[f"{name}.word_embeddings.weight"][tokens] + weights[f"{name}.token_type_embeddings.weight"][types]
    h = h + weights[f"{name}.position_embeddings.weight"][first : first + len(tokens)]
    eps = config["layer_norm_eps"]
    h = layer_norm(weights, f"{name}.LayerNorm", h, eps)
    for index in range(config["num_hidden_layers"]):
        name = f"{prefix}encoder.layer.{index}"
        q, k, v = (
            heads_of(linear(weights, f"{name}.attention.self.{part}", h), config["num_attention_heads"])
            for part in ("query", "key", "value")
        )
        out = linear(weights, f"{name}.attention.output.dense", attention(q, k, v, everywhere(len(tokens))))
        h = layer_norm(weights, f"{name}.attention.output.LayerNorm", h + out, eps)
        out = linear(weights, f"{name}.output.dense", gelu(linear(weights, f"{name}.intermediate.dense", h)))
        h = layer_norm(weights, f"{name}.output.LayerNorm", h + out, eps)
    return h


def modernbert(config: Config, weights: Weights, tokens: list[int], second_at: int = 0, prefix: str = "") -> Array:
    eps, heads = config["norm_eps"], config["num_attention_heads"]
    distance = np.abs(np.subtract.outer(np.arange(len(tokens)), np.arange(len(tokens))))
    h = weights[f"{prefix}embeddings.tok_embeddings.weight"][tokens]
    h = layer_norm(weights, f"{prefix}embeddings.norm", h, eps)
    for index in range(config["num_hidden_layers"]):
        name, is_local = f"{prefix}layers.{index}", index % config["global_attn_every_n_layers"] != 0
        x = layer_norm(weights, f"{name}.attn_norm", h, eps) if index else h
        q, k, v = (heads_of(part, heads) for part in np.split(linear(weights, f"{name}.attn.Wqkv", x), 3, axis=-1))
        base = config["local_rope_theta" if is_local else "global_rope_theta"]
        sees = distance <= config["local_attention"] // 2 if is_local else everywhere(len(tokens))
        h = h + linear(weights, f"{name}.attn.Wo", attention(rotate(q, base), rotate(k, base), v, sees))
        inputs, gate = np.split(
            linear(weights, f"{name}.mlp.Wi", layer_norm(weights, f"{name}.mlp_norm", h, eps)), 2, axis=-1
        )
        h = h + linear(weights, f"{name}.mlp.Wo", gelu(inputs) * gate)
    return layer_norm(weights, f"{prefix}final_norm", h, eps)


def nomic(config: Config, weights: Weights, tokens: list[int], second_at: int = 0) -> Array:
    eps, base = config["layer_norm_epsilon"], config["rotary_emb_base"]
    h = weights["embeddings.word_embeddings.weight"][tokens] + weights["embeddings.token_type_embeddings.weight"][0]
    h = layer_norm(weights, "emb_ln", h, eps)
    for index in range(config["n_layer"]):
        name = f"encoder.layers.{index}"
        q, k, v = (
            heads_of(part, config["n_head"]) for part in np.split(linear(weights, f"{name}.attn.Wqkv", h), 3, axis=-1)
        )
        out = attention(rotate(q, base), rotate(k, base), v, everywhere(len(tokens)))
        h = layer_norm(weights, f"{name}.norm1", h + linear(weights, f"{name}.attn.out_proj", out), eps)
        inner = linear(weights, f"{name}.mlp.fc11", h) * silu(linear(weights, f"{name}.mlp.fc12", h))
        h = layer_norm(weights, f"{name}.norm2", h + linear(weights, f"{name}.mlp.fc2", inner), eps)
    return h


def qwen3(config: Config, weights: Weights, tokens: list[int], second_at: int = 0) -> Array:
    """Also Mistral and Llama, which have no norms of queries and keys."""
    eps, base = config["rms_norm_eps"], config["rope_theta"]
    causal = np.tril(everywhere(len(tokens)))
    h = weights["embed_tokens.weight"][tokens]
    for index in range(config["num_hidden_layers"]):
        name = f"layers.{index}"
        x = rms_norm(h, weights[f"{name}.input_layernorm.weight"], eps)
        q = heads_of(linear(weights, f"{name}.self_attn.q_proj", x), config["num_attention_heads"])
        k, v = (
            heads_of(linear(weights, f"{name}.self_attn.{part}_proj", x), config["num_key_value_heads"])
            for part in "kv"
        )
        if f"{name}.self_attn.q_norm.weight" in weights:
            q = rms_norm(q, weights[f"{name}.self_attn.q_norm.weight"], eps)
            k = rms_norm(k, weights[f"{name}.self_attn.k_norm.weight"], eps)
        h = h + linear(weights, f"{name}.self_attn.o_proj", attention(rotate(q, base), rotate(k, base), v, causal))
        h = h + _gated(weights, name, rms_norm(h, weights[f"{name}.post_attention_layernorm.weight"], eps), silu)
    return rms_norm(h, weights["norm.weight"], eps)


def embedding_gemma(config: Config, weights: Weights, tokens: list[int], second_at: int = 0) -> Array:
    eps = config["rms_norm_eps"]
    distance = np.abs(np.subtract.outer(np.arange(len(tokens)), np.arange(len(tokens))))

    def norm(name: str, x: Array) -> Array:
        return rms_norm(x, 1 + weights[f"{name}.weight"], eps)

    h = weights["embed_tokens.weight"][tokens] * math.sqrt(config["hidden_size"])
    for index, kind in enumerate(config["layer_types"]):
        name, is_local = f"layers.{index}", kind == "sliding_attention"
        sees = distance < config["sliding_window"] // 2 + 1 if is_local else everywhere(len(tokens))
        base = config["rope_local_base_freq" if is_local else "rope_theta"]
        x = norm(f"{name}.input_layernorm", h)
        q = heads_of(linear(weights, f"{name}.self_attn.q_proj", x), config["num_attention_heads"])
        k, v = (
            heads_of(linear(weights, f"{name}.self_attn.{part}_proj", x), config["num_key_value_heads"])
            for part in "kv"
        )
        q, k = norm(f"{name}.self_attn.q_norm", q), norm(f"{name}.self_attn.k_norm", k)
        out = attention(rotate(q, base), rotate(k, base), v, sees, config["query_pre_attn_scalar"] ** -0.5)
        h = h + norm(f"{name}.post_attention_layernorm", linear(weights, f"{name}.self_attn.o_proj", out))
        out = _gated(weights, name, norm(f"{name}.pre_feedforward_layernorm", h), gelu_tanh)
        h = h + norm(f"{name}.post_feedforward_layernorm", out)
    return norm("norm", h)


def _gated(weights: Weights, name: str, x: Array, act: Callable[[Array], Array]) -> Array:
    inner = act(linear(weights, f"{name}.mlp.gate_proj", x)) * linear(weights, f"{name}.mlp.up_proj", x)
    return linear(weights, f"{name}.mlp.down_proj", inner)


def pooled(h: Array, mode: str) -> Array:
    places = np.arange(1, len(h) + 1)[:, None]
    modes: dict[str, Array] = {
        "cls": h[0],
        "lasttoken": h[-1],
        "max": h.max(0),
        "mean": h.mean(0),
        "mean_sqrt_len_tokens": h.sum(0) / math.sqrt(len(h)),
        "weightedmean": (h * places).sum(0) / places.sum(),
    }
    return modes[mode]


def unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def bert_score(config: Config, weights: Weights, tokens: list[int], second_at: int) -> float:
    h = bert(config, weights, tokens, second_at, "bert.")
    return float(sigmoid(linear(weights, "classifier", np.tanh(linear(weights, "bert.pooler.dense", h[0]))))[0])


def roberta_score(config: Config, weights: Weights, tokens: list[int], second_at: int) -> float:
    h = bert(config, weights, tokens, second_at, "roberta.")
    hidden = np.tanh(linear(weights, "classifier.dense", h[0]))
    return float(sigmoid(linear(weights, "classifier.out_proj", hidden))[0])


def modernbert_score(config: Config, weights: Weights, tokens: list[int], second_at: int) -> float:
    h = modernbert(config, weights, tokens, second_at, "model.")
    chosen = h.mean(0) if config["classifier_pooling"] == "mean" else h[0]
    hidden = layer_norm(weights, "head.norm", gelu(linear(weights, "head.dense", chosen)), config["norm_eps"])
    return float(sigmoid(linear(weights, "classifier", hidden))[0])
