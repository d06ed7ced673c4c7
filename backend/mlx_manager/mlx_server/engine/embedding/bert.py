"""BERT, RoBERTa and XLM-RoBERTa (https://arxiv.org/abs/1810.04805), and their classification heads."""

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_manager.mlx_server.engine.embedding.layers import activation, attend
from mlx_manager.mlx_server.engine.embedding.recipe import first_position

_RENAMED = (
    (r"^(bert|roberta|xlm_roberta)\.", ""),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"^embeddings\.", ""),
    (r"^LayerNorm\.", "norm."),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.self\.", "."),
    (r"\.attention\.output\.dense\.", ".out."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.intermediate\.dense\.", ".up."),
    (r"\.output\.dense\.", ".down."),
    (r"\.output\.LayerNorm\.", ".norm."),
)
_WITHOUT_HEADS = ("cls.", "lm_head.", "position_ids", "pooler.", "classifier.", "dropout.")


def rename(name: str, is_classifier: bool) -> str | None:
    """The weight's name in this module; None for an unused weight."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    unneeded = _WITHOUT_HEADS if not is_classifier else ("cls.", "lm_head.", "position_ids")
    return None if name.startswith(unneeded) else name


class Bert(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size, eps = config["hidden_size"], config.get("layer_norm_eps", 1e-12)
        is_roberta = config["model_type"] != "bert"
        self._first_position = first_position(config) if is_roberta else 0
        self.word_embeddings = nn.Embedding(config["vocab_size"], size)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], size)
        self.token_type_embeddings = nn.Embedding(config.get("type_vocab_size", 2), size)
        self.norm = nn.LayerNorm(size, eps)
        self.layers = [BertLayer(config) for _ in range(config["num_hidden_layers"])]

    def __call__(self, tokens: mx.array, types: mx.array, mask: mx.array | None) -> mx.array:
        """(B, L) token ids and segments to (B, L, D)."""
        if self.token_type_embeddings.weight.shape[0] == 1:
            types = mx.zeros_like(types)
        positions = mx.arange(tokens.shape[1]) + self._first_position
        h = self.word_embeddings(tokens) + self.position_embeddings(positions) + self.token_type_embeddings(types)
        h = self.norm(h)
        for layer in self.layers:
            h = layer(h, mask)
        return h


class BertLayer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size, inner, eps = config["hidden_size"], config["intermediate_size"], config.get("layer_norm_eps", 1e-12)
        self._heads = config["num_attention_heads"]
        self._act = activation(config.get("hidden_act", "gelu"))
        self.query, self.key, self.value = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.out = nn.Linear(size, size)
        self.attention_norm = nn.LayerNorm(size, eps)
        self.up, self.down = nn.Linear(size, inner), nn.Linear(inner, size)
        self.norm = nn.LayerNorm(size, eps)

    def __call__(self, h: mx.array, mask: mx.array | None) -> mx.array:
        attended = attend(self.query(h), self.key(h), self.value(h), self._heads, mask)
        h = self.attention_norm(h + self.out(attended))
        return self.norm(h + self.down(self._act(self.up(h))))


class BertClassifier(nn.Module):
    """One logit from the first token's hidden state: BERT's pooler and classifier."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.pooler = {"dense": nn.Linear(config["hidden_size"], config["hidden_size"])}
        self.classifier = nn.Linear(config["hidden_size"], 1)

    def __call__(self, h: mx.array, lengths: mx.array) -> mx.array:
        return self.classifier(mx.tanh(self.pooler["dense"](h[:, 0])))


class RobertaClassifier(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size = config["hidden_size"]
        self.classifier = {"dense": nn.Linear(size, size), "out_proj": nn.Linear(size, 1)}

    def __call__(self, h: mx.array, lengths: mx.array) -> mx.array:
        return self.classifier["out_proj"](mx.tanh(self.classifier["dense"](h[:, 0])))
