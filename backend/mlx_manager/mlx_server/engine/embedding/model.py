"""Loads an embedding model or reranker: padded token ids to vectors or scores. Runs in the worker."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_manager.mlx_server.engine.embedding import bert, modernbert, nomic
from mlx_manager.mlx_server.engine.embedding.decoders import load_decoder
from mlx_manager.mlx_server.engine.embedding.layers import padding_mask
from mlx_manager.mlx_server.engine.embedding.pooling import Dense, normalized, pool
from mlx_manager.mlx_server.engine.embedding.recipe import ENCODERS, Config, Recipe

Weights = dict[str, mx.array]
_HEADS = ("classifier.", "head.", "pooler.")


@dataclass(frozen=True, slots=True)
class _Family:
    backbone: Callable[[Config], nn.Module]
    classifier: Callable[[Config], nn.Module] | None
    rename: Callable[[str, bool], str | None]


_ROBERTA = _Family(bert.Bert, bert.RobertaClassifier, bert.rename)
_FAMILIES = {
    "bert": _Family(bert.Bert, bert.BertClassifier, bert.rename),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "modernbert": _Family(modernbert.ModernBert, modernbert.ModernBertClassifier, modernbert.rename),
    "nomic_bert": _Family(nomic.NomicBert, None, nomic.rename),
}


class EmbeddingModel(nn.Module):
    """`dimensions` is 1 for a reranker, whose scores are between 0 and 1."""

    def __init__(self, recipe: Recipe, backbone: nn.Module, head: nn.Module | None, dense: list[Dense]) -> None:
        super().__init__()
        self._recipe = recipe
        self.backbone = backbone
        self.head = head
        self.dense = dense
        self.dimensions = int(self(mx.zeros((1, 1), mx.int32), [1], [0]).shape[-1])

    def __call__(self, tokens: mx.array, lengths: list[int], second_at: list[int]) -> mx.array:
        """(B, L) padded token ids to (B, dimensions), float32, not evaluated.

        The second text of a pair begins at its `second_at`, which is 0 for a single text.
        """
        ends, starts = mx.array(lengths), mx.array(second_at)[:, None]
        types = ((starts > 0) & (mx.arange(tokens.shape[1])[None] >= starts)).astype(mx.int32)
        h = self.backbone(tokens, types, padding_mask(lengths, tokens.shape[1]))
        if self.head is not None:
            return mx.sigmoid(self.head(h, ends).astype(mx.float32))
        vectors = pool(h, ends, self._recipe.pooling)
        for layer in self.dense:
            vectors = layer(vectors)
        vectors = vectors.astype(mx.float32)
        return normalized(vectors) if self._recipe.normalize else vectors


def load_embedding_model(folder: Path, recipe: Recipe, *, on_cpu: bool) -> EmbeddingModel:
    """The model in memory; float32 on the CPU, which is slow at 16 bits. Raises UnusableModel."""
    if recipe.model_type in ENCODERS:
        backbone, head = _load_encoder(folder, recipe)
    else:
        backbone, head = load_decoder(folder, recipe.config), None
    dense = [Dense(folder / name) for name in recipe.dense]
    for module in filter(None, [backbone, head, *dense]):
        if on_cpu:
            module.set_dtype(mx.float32)
        module.eval()
        mx.eval(module.parameters())
    return EmbeddingModel(recipe, backbone, head, dense)


def _load_encoder(folder: Path, recipe: Recipe) -> tuple[nn.Module, nn.Module | None]:
    family, is_reranker = _FAMILIES[recipe.model_type], recipe.kind == "rerank"
    weights: Weights = {}
    for file in sorted(folder.glob("model*.safetensors")):
        loaded: Any = mx.load(str(file))
        for name, array in loaded.items():
            renamed = family.rename(name, is_reranker)
            if renamed is not None:
                weights[renamed] = array
    if recipe.model_type == "nomic_bert":
        weights = nomic.join_projections(weights)
    head_weights = {name: array for name, array in weights.items() if name.startswith(_HEADS)}
    body_weights = {name: array for name, array in weights.items() if name not in head_weights}
    backbone = _filled(family.backbone(recipe.config), body_weights, recipe.config)
    if not is_reranker or family.classifier is None:
        return backbone, None
    return backbone, _filled(family.classifier(recipe.config), head_weights, recipe.config)


def _filled(module: nn.Module, weights: Weights, config: Config) -> nn.Module:
    """The module with the weights. Raises ValueError with the names of missing and unexpected weights."""
    settings = config.get("quantization")
    if isinstance(settings, dict):
        nn.quantize(
            module,
            group_size=settings["group_size"],
            bits=settings["bits"],
            class_predicate=lambda path, part: hasattr(part, "to_quantized") and f"{path}.scales" in weights,
        )
    module.load_weights(list(weights.items()))
    return module
