"""Embedding models and rerankers of every family with random weights, as their authors' files have them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.mlx_server.engine.embedding import references
from tests.mlx_server.engine.embedding.references import Array

Shapes = dict[str, tuple[int, ...]]
VOCABULARY, SIZE, INNER, HEADS = 200, 32, 48, 4
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": SIZE,
    "intermediate_size": INNER,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 130,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
_ROBERTA = _BERT | {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
_MODERNBERT = {
    "model_type": "modernbert",
    "vocab_size": VOCABULARY,
    "hidden_size": SIZE,
    "intermediate_size": INNER,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 128,
    "norm_eps": 1e-5,
    "local_attention": 16,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
}
_NOMIC = {
    "model_type": "nomic_bert",
    "vocab_size": VOCABULARY,
    "n_embd": SIZE,
    "n_inner": INNER,
    "n_layer": 3,
    "n_head": HEADS,
    "n_positions": 256,
    "max_trained_positions": 128,
    "layer_norm_epsilon": 1e-12,
    "activation_function": "swiglu",
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
    "prenorm": False,
    "type_vocab_size": 2,
}
_QWEN3 = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": SIZE,
    "intermediate_size": INNER,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
}
_MISTRAL = _QWEN3 | {"model_type": "mistral", "architectures": ["MistralModel"], "tie_word_embeddings": False}
_GEMMA = _QWEN3 | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3TextModel"],
    "use_bidirectional_attention": True,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 20,
    "rope_local_base_freq": 10_000.0,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_hidden_layers": 4,
}


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (rows, columns)}
    return shapes | ({f"{name}.bias": (rows,)} if bias else {})


def _norm(name: str, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (SIZE,)}
    return shapes | ({f"{name}.bias": (SIZE,)} if bias else {})


def _bert_shapes(config: Mapping[str, Any], prefix: str = "") -> Shapes:
    name = f"{prefix}embeddings"
    shapes: Shapes = {
        f"{name}.word_embeddings.weight": (VOCABULARY, SIZE),
        f"{name}.position_embeddings.weight": (config["max_position_embeddings"], SIZE),
        f"{name}.token_type_embeddings.weight": (config["type_vocab_size"], SIZE),
        **_norm(f"{name}.LayerNorm"),
    }
    for index in range(config["num_hidden_layers"]):
        name = f"{prefix}encoder.layer.{index}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _linear(f"{name}.{part}", SIZE, SIZE)
        shapes |= _linear(f"{name}.intermediate.dense", INNER, SIZE) | _linear(f"{name}.output.dense", SIZE, INNER)
        shapes |= _norm(f"{name}.attention.output.LayerNorm") | _norm(f"{name}.output.LayerNorm")
    return shapes | ({} if prefix == "roberta." else _linear(f"{prefix}pooler.dense", SIZE, SIZE))


def _modernbert_shapes(config: Mapping[str, Any], prefix: str = "") -> Shapes:
    shapes: Shapes = {f"{prefix}embeddings.tok_embeddings.weight": (VOCABULARY, SIZE)}
    shapes |= _norm(f"{prefix}embeddings.norm", False) | _norm(f"{prefix}final_norm", False)
    for index in range(config["num_hidden_layers"]):
        name = f"{prefix}layers.{index}"
        shapes |= _linear(f"{name}.attn.Wqkv", 3 * SIZE, SIZE, False) | _linear(f"{name}.attn.Wo", SIZE, SIZE, False)
        shapes |= _linear(f"{name}.mlp.Wi", 2 * INNER, SIZE, False) | _linear(f"{name}.mlp.Wo", SIZE, INNER, False)
        shapes |= _norm(f"{name}.mlp_norm", False) | (_norm(f"{name}.attn_norm", False) if index else {})
    return shapes


def _nomic_shapes(config: Mapping[str, Any]) -> Shapes:
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, SIZE),
        "embeddings.token_type_embeddings.weight": (2, SIZE),
        **_norm("emb_ln"),
    }
    for index in range(config["n_layer"]):
        name = f"encoder.layers.{index}"
        shapes |= _linear(f"{name}.attn.Wqkv", 3 * SIZE, SIZE, False)
        shapes |= _linear(f"{name}.attn.out_proj", SIZE, SIZE, False) | _linear(f"{name}.mlp.fc2", SIZE, INNER, False)
        shapes |= _linear(f"{name}.mlp.fc11", INNER, SIZE, False) | _linear(f"{name}.mlp.fc12", INNER, SIZE, False)
        shapes |= _norm(f"{name}.norm1") | _norm(f"{name}.norm2")
    return shapes


def _decoder_shapes(config: Mapping[str, Any]) -> Shapes:
    is_gemma, head = config["model_type"] == "gemma3_text", config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if is_gemma else []
    shapes: Shapes = {"embed_tokens.weight": (VOCABULARY, SIZE), **_norm("norm", False)}
    for index in range(config["num_hidden_layers"]):
        name = f"layers.{index}"
        shapes |= _linear(f"{name}.self_attn.q_proj", queries, SIZE, False)
        shapes |= _linear(f"{name}.self_attn.k_proj", keys, SIZE, False)
        shapes |= _linear(f"{name}.self_attn.v_proj", keys, SIZE, False)
        shapes |= _linear(f"{name}.self_attn.o_proj", SIZE, queries, False)
        for part, rows, columns in (("gate", INNER, SIZE), ("up", INNER, SIZE), ("down", SIZE, INNER)):
            shapes |= _linear(f"{name}.mlp.{part}_proj", rows, columns, False)
        for norm in norms:
            shapes |= _norm(f"{name}.{norm}", False)
        if config["model_type"] != "mistral":
            shapes |= {f"{name}.self_attn.q_norm.weight": (head,), f"{name}.self_attn.k_norm.weight": (head,)}
    return shapes


@dataclass(frozen=True)
class Family:
    """`reference` gives the hidden states of one text, or the score of one pair."""

    config: Mapping[str, Any]
    shapes: Shapes
    reference: Callable[..., Any]
    pooling: str = "mean"


EMBEDDERS = {
    "bert": Family(
        {**_BERT, "model_type": "bert", "architectures": ["BertModel"]}, _bert_shapes(_BERT), references.bert
    ),
    "xlm-roberta": Family(
        {**_ROBERTA, "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]},
        _bert_shapes(_ROBERTA),
        references.bert,
        "cls",
    ),
    "modernbert": Family(
        {**_MODERNBERT, "architectures": ["ModernBertModel"]},
        _modernbert_shapes(_MODERNBERT),
        references.modernbert,
        "cls",
    ),
    "nomic": Family({**_NOMIC, "architectures": ["NomicBertModel"]}, _nomic_shapes(_NOMIC), references.nomic),
    "qwen3": Family(_QWEN3, _decoder_shapes(_QWEN3), references.qwen3, "lasttoken"),
    "mistral": Family(_MISTRAL, _decoder_shapes(_MISTRAL), references.qwen3, "lasttoken"),
    "gemma": Family(_GEMMA, _decoder_shapes(_GEMMA), references.embedding_gemma),
}
_ONE_LABEL = {"id2label": {"0": "LABEL_0"}}
RERANKERS = {
    "bert": Family(
        {**_BERT, "model_type": "bert", "architectures": ["BertForSequenceClassification"], **_ONE_LABEL},
        _bert_shapes(_BERT, "bert.") | _linear("classifier", 1, SIZE),
        references.bert_score,
    ),
    "xlm-roberta": Family(
        {
            **_ROBERTA,
            "model_type": "xlm-roberta",
            "architectures": ["XLMRobertaForSequenceClassification"],
            **_ONE_LABEL,
        },
        _bert_shapes(_ROBERTA, "roberta.")
        | _linear("classifier.dense", SIZE, SIZE)
        | _linear("classifier.out_proj", 1, SIZE),
        references.roberta_score,
    ),
    "modernbert": Family(
        {
            **_MODERNBERT,
            "architectures": ["ModernBertForSequenceClassification"],
            "classifier_pooling": "mean",
            **_ONE_LABEL,
        },
        _modernbert_shapes(_MODERNBERT, "model.")
        | _linear("head.dense", SIZE, SIZE, False)
        | _norm("head.norm", False)
        | _linear("classifier", 1, SIZE),
        references.modernbert_score,
    ),
}


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, Array]:
    """Of a size at which every part of the model changes the result. In float32's precision."""
    random = np.random.default_rng(seed)
    return {
        name: random.normal(1 if "norm" in name.lower() and name.endswith("weight") else 0, 0.3, shape)
        .astype(np.float32)
        .astype(np.float64)
        for name, shape in shapes.items()
    }


def make_model(folder: Path, family: Family, *, prompts: Mapping[str, str] | None = None, dense: bool = False) -> Path:
    """With a tokenizer of words w0, w1, ..., which stand between [CLS] and [SEP]."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", dict(family.config))
    save(folder / "model.safetensors", random_weights(family.shapes))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    if "id2label" in family.config:
        return folder
    modules = ["Transformer", "Pooling", *(["Dense", "Dense"] if dense else []), "Normalize"]
    names = ["", *(f"{index}_{kind}" for index, kind in enumerate(modules[1:], 1))]
    write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": name, "type": f"sentence_transformers.models.{kind}"}
            for index, (name, kind) in enumerate(zip(names, modules, strict=True))
        ],
    )
    (folder / "1_Pooling").mkdir()
    modes = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    write_json(folder / "1_Pooling" / "config.json", {f"pooling_mode_{modes[family.pooling]}": True})
    if dense:
        make_dense(folder / "2_Dense", SIZE, 64, "Identity", seed=1)
        make_dense(folder / "3_Dense", 64, 24, "Tanh", seed=2)
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", {"prompts": dict(prompts)})
    return folder


def make_dense(folder: Path, inputs: int, outputs: int, act: str, seed: int) -> None:
    folder.mkdir()
    activation = f"torch.nn.modules.{act}"
    write_json(
        folder / "config.json",
        {"in_features": inputs, "out_features": outputs, "bias": False, "activation_function": activation},
    )
    save(folder / "model.safetensors", random_weights({"linear.weight": (outputs, inputs)}, seed))


def make_tokenizer() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(VOCABULARY - 4))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.enable_padding(length=12, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(8)  # as all-MiniLM-L6-v2's file has them, for what it was exported with
    return tokenizer


def save(file: Path, weights: Mapping[str, Array]) -> None:
    mx.save_safetensors(str(file), {name: mx.array(array.astype(np.float32)) for name, array in weights.items()})


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value))
