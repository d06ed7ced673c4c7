"""Reads how to use an embedding model or reranker from its files: pooling, prompts, limits. Imports no MLX.

The files are those of sentence-transformers: modules.json, 1_Pooling/config.json, sentence_bert_config.json and
config_sentence_transformers.json. Both the API process and the worker read them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_manager.mlx_server.kinds import ModelKind

Config = dict[str, Any]

ENCODERS = ("bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert")
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
"""Their modules in mlx-lm only attend to earlier tokens."""
BIDIRECTIONAL_DECODERS = ("gemma3_text",)
_SERVED = "BERT, RoBERTa, XLM-RoBERTa, ModernBERT, Nomic BERT, EmbeddingGemma, Qwen3, Qwen2, Mistral and Llama"
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""In the order in which sentence-transformers concatenates them."""
_TIDY_SLASHES = re.compile(r"[/\\]+")


class UnusableModel(Exception):
    """The worker cannot run the model correctly. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to turn the hidden states of a model's last layer into a vector or, for a reranker, a score."""

    kind: ModelKind
    model_type: str
    config: Config
    max_tokens: int
    """Limit of one input, special tokens included."""
    pooling: tuple[str, ...]
    dense: tuple[str, ...] = ()
    """Folders of the dense layers after the pooling."""
    normalize: bool = True
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts to prepend to an input, by the prompt name in a request."""
    default_prompt: str | None = None


def read_recipe(folder: Path, kind: ModelKind) -> Recipe:
    """Raises UnusableModel for a model whose vectors or scores would be wrong."""
    config = read_json(folder / "config.json")
    model_type = str(config.get("model_type"))
    _check_family(config, model_type, kind)
    max_tokens = max_input_tokens(folder, config)
    if kind == "rerank":
        return Recipe(kind, model_type, config, max_tokens, ())
    prompts = read_json(folder / "config_sentence_transformers.json")
    named = prompts.get("prompts")
    default = prompts.get("default_prompt_name")
    pooling, dense, normalize = _modules(folder, model_type)
    return Recipe(
        kind,
        model_type,
        config,
        max_tokens,
        pooling,
        dense,
        normalize,
        read_json(folder / "sentence_bert_config.json").get("do_lower_case") is True,
        {str(name): str(text) for name, text in named.items()} if isinstance(named, dict) else {},
        str(default) if default is not None else None,
    )


def read_json(file: Path) -> Config:
    """The object in the file; empty if the file cannot be read."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_family(config: Config, model_type: str, kind: ModelKind) -> None:
    if model_type not in (*ENCODERS, *DECODERS, *BIDIRECTIONAL_DECODERS):
        raise UnusableModel(
            f"embedding models and rerankers of the model_type {model_type!r} are not supported. Use a model of one of "
            f"these families: {_SERVED}."
        )
    if kind == "rerank":
        _check_reranker(config, model_type)
    if model_type in DECODERS and _may_see_later_tokens(config):
        raise UnusableModel(
            f"it attends to later tokens, and mlx-lm's {model_type!r} does not: its vectors would be wrong. Use "
            "a model whose attention is causal, or an encoder."
        )
    if model_type in BIDIRECTIONAL_DECODERS and config.get("use_bidirectional_attention") is not True:
        raise UnusableModel(
            "its config.json has no use_bidirectional_attention = true, which models of the model_type 'gemma3_text' "
            "need to embed. Use EmbeddingGemma."
        )
    position_type = config.get("position_embedding_type", "absolute")
    if position_type not in ("absolute", "rope", "sans_pos"):
        raise UnusableModel(f"its position_embedding_type {position_type!r} is not supported. Use another model.")
    if config.get("is_decoder") is True:
        raise UnusableModel("its config.json sets is_decoder = true, but an encoder is needed. Use another model.")


def _check_reranker(config: Config, model_type: str) -> None:
    if model_type not in ENCODERS or model_type == "nomic_bert":
        raise UnusableModel(
            f"sequence classifiers of the model_type {model_type!r} are not supported. Use a reranker of the families "
            "BERT, RoBERTa, XLM-RoBERTa or ModernBERT, or a Qwen3-Reranker that generates."
        )
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if count != 1:
        raise UnusableModel(f"its classifier has {count} labels, and a reranker has one. Use another model.")


def _may_see_later_tokens(config: Config) -> bool:
    """Whether attention may be bidirectional, by its settings or by the model's own code."""
    return (
        config.get("is_causal") is False
        or config.get("use_bidirectional_attention") is True
        or "AutoModel" in str(config.get("auto_map"))
    )


def max_input_tokens(folder: Path, config: Config) -> int:
    """The limit that the authors set, if it is below the number of positions."""
    found = config.get("max_position_embeddings", config.get("n_positions"))
    positions = found if isinstance(found, int) else 512
    if config.get("model_type") in ("roberta", "xlm-roberta"):
        positions -= first_position(config)
    if isinstance(trained := config.get("max_trained_positions"), int):
        positions = min(positions, trained)
    own = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return min(own, positions) if isinstance(own, int) else positions


def first_position(config: Config) -> int:
    """RoBERTa's positions begin behind that of the padding."""
    padding = config.get("pad_token_id")
    return padding + 1 if isinstance(padding, int) else 2


def _modules(folder: Path, model_type: str) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Pooling modes, folders of dense layers, and whether to normalise the vector."""
    try:
        modules: list[Config] = json.loads((folder / "modules.json").read_text("utf-8"))
    except (OSError, ValueError):
        return ("mean",) if model_type in ENCODERS else ("lasttoken",), (), True
    pooling: tuple[str, ...] = ("mean",)
    dense: list[str] = []
    normalize = False
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise UnusableModel("its modules.json is no list of modules. Download the model again")
    for module in modules:
        name, path = str(module.get("type")).rpartition(".")[2], _inside(str(module.get("path", "")))
        if name == "Pooling":
            pooling = _pooling(read_json(folder / path / "config.json"))
        elif name == "Dense":
            dense.append(path)
        elif name == "Normalize":
            normalize = True
        elif name != "Transformer":
            raise UnusableModel(f"its modules.json has a module {name!r}, which is not supported. Use another model.")
    return pooling, tuple(dense), normalize


def _inside(path: str) -> str:
    """The path, checked to be inside the model's folder."""
    if ".." in _TIDY_SLASHES.split(path) or path.startswith("/"):
        raise UnusableModel(
            f"its modules.json names the folder {path!r}, which is outside the model's folder. Use another model."
        )
    return path


def _pooling(config: Config) -> tuple[str, ...]:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [name for key, name in _POOLINGS.items() if config.get(key) is True]
    chosen = (modes,) if isinstance(modes, str) else tuple(map(str, modes)) if isinstance(modes, list) else ()
    unknown = set(chosen) - set(_POOLINGS.values())
    if unknown or not chosen:
        named = ", ".join(sorted(unknown)) or "without a mode"
        raise UnusableModel(f"its pooling {named} is not supported. Use another model.")
    if config.get("include_prompt") is False:
        raise UnusableModel(
            "its pooling excludes prompts (include_prompt = false), which is not supported. Use another model."
        )
    return chosen
