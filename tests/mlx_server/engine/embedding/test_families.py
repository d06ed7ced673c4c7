"""Every family of embedding models and rerankers against float64 numpy, alone and in any batch."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_manager.mlx_server.engine.embedding.model import EmbeddingModel, load_embedding_model
from mlx_manager.mlx_server.engine.embedding.recipe import (
    UnusableModel,
    max_input_tokens,
    read_json,
    read_recipe,
)
from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.models.kinds import kind_of
from tests.mlx_server.engine.embedding import references
from tests.mlx_server.engine.embedding.references import unit
from tests.mlx_server.engine.embedding.tiny import (
    EMBEDDERS,
    RERANKERS,
    VOCABULARY,
    make_model,
    random_weights,
    write_json,
)

LENGTHS = (1, 2, 7, 16, 17, 40, 100)


def load(folder: Path, kind: ModelKind) -> EmbeddingModel:
    assert kind_of(folder) == kind
    return load_embedding_model(folder, read_recipe(folder, kind), on_cpu=True)


def load_weights(folder: Path) -> dict[str, mx.array]:
    loaded: Any = mx.load(str(folder / "model.safetensors"))
    return dict(loaded)


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(4, VOCABULARY, length).tolist() for length in lengths]


def vectors(model: EmbeddingModel, rows: list[list[int]], second_at: list[int] | None = None, pad: int = 5) -> mx.array:
    """Padded with a token that would change the result if it were seen."""
    lengths = [len(row) for row in rows]
    padded = [row + [pad] * (max(lengths) - len(row)) for row in rows]
    return model(mx.array(padded), lengths, second_at if second_at is not None else [0] * len(rows))


@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_vector_is_that_of_the_reference_alone_and_in_any_batch(tmp_path: Path, name: str) -> None:
    family = EMBEDDERS[name]
    model, weights = load(make_model(tmp_path / name, family), "embed"), random_weights(family.shapes)
    rows = texts()
    expected = [unit(references.pooled(family.reference(family.config, weights, row), family.pooling)) for row in rows]
    alone = [np.array(vectors(model, [row]))[0] for row in rows]
    together = np.array(vectors(model, rows))
    few = np.array(vectors(model, rows[3:5]))
    for found in (alone, together, [*together[:3], *few, *together[5:]]):
        cosines = [float(vector @ reference) for vector, reference in zip(found, expected, strict=True)]
        assert min(cosines) >= 0.99999, cosines
        assert np.allclose(np.linalg.norm(np.array(found), axis=-1), 1, atol=1e-5)


def test_different_texts_have_different_vectors(tmp_path: Path) -> None:
    """So that the cosines above could fail."""
    for name, family in EMBEDDERS.items():
        found = np.array(vectors(load(make_model(tmp_path / name, family), "embed"), texts()))
        cosines = found @ found.T - np.eye(len(found))
        assert cosines.max() < 0.999, name


@pytest.mark.parametrize("name", RERANKERS)
def test_a_score_is_that_of_the_reference_alone_and_in_any_batch(tmp_path: Path, name: str) -> None:
    family = RERANKERS[name]
    model, weights = load(make_model(tmp_path / name, family), "rerank"), random_weights(family.shapes)
    rows, second_at = texts((4, 9, 30, 100)), [2, 5, 7, 50]
    pairs = list(zip(rows, second_at, strict=True))
    expected = [family.reference(family.config, weights, row, start) for row, start in pairs]
    alone = [float(vectors(model, [row], [start])[0, 0]) for row, start in pairs]
    together = np.array(vectors(model, rows, second_at))[:, 0]
    assert np.allclose(alone, expected, atol=1e-5)
    assert np.allclose(together, expected, atol=1e-5)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_each_pooling_is_that_of_the_reference(tmp_path: Path, mode: str) -> None:
    family = EMBEDDERS["bert"]
    folder = make_model(tmp_path / "model", family)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": mode})
    write_json(
        folder / "modules.json", [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    )
    rows, weights = texts((3, 9)), random_weights(family.shapes)
    expected = [references.pooled(references.bert(family.config, weights, row), mode) for row in rows]
    assert np.allclose(np.array(vectors(load(folder, "embed"), rows)), expected, atol=1e-4)


def test_dense_layers_come_behind_the_pooling(tmp_path: Path) -> None:
    family = EMBEDDERS["gemma"]
    model = load(make_model(tmp_path / "model", family, dense=True), "embed")
    weights, rows = random_weights(family.shapes), texts((3, 40))
    first = random_weights({"linear.weight": (64, 32)}, 1)["linear.weight"]
    second = random_weights({"linear.weight": (24, 64)}, 2)["linear.weight"]
    for row, vector in zip(rows, np.array(vectors(model, rows)), strict=True):
        mean = references.pooled(references.embedding_gemma(family.config, weights, row), "mean")
        assert vector.shape == (24,)
        assert float(vector @ unit(np.tanh(second @ (first @ mean)))) >= 0.99999


def test_nomic_as_transformers_saves_it_is_the_same_model(tmp_path: Path) -> None:
    family = EMBEDDERS["nomic"]
    published = load(make_model(tmp_path / "published", family), "embed")
    folder = make_model(tmp_path / "saved", family)
    renamed = {
        "emb_ln": "embeddings.LayerNorm",
        "encoder.layers": "layers",
        "attn.out_proj": "self_attn.o_proj",
        "fc11": "up_proj",
        "fc12": "gate_proj",
        "fc2": "down_proj",
        "norm1": "post_attention_layernorm",
        "norm2": "post_mlp_layernorm",
    }
    weights: dict[str, mx.array] = {}
    for name, array in load_weights(folder).items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        if "attn.Wqkv" in name:
            for part, piece in zip("qkv", mx.split(array, 3), strict=True):
                weights[name.replace("attn.Wqkv", f"self_attn.{part}_proj")] = piece
        else:
            weights[name] = array
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    write_json(
        folder / "config.json",
        {
            "model_type": "nomic_bert",
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "layer_norm_eps": 1e-12,
            "hidden_act": "silu",
            "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
    )
    rows = texts((5, 20))
    assert mx.allclose(vectors(published, rows), vectors(load(folder, "embed"), rows), atol=1e-6)


def test_a_quantised_encoder_gives_about_the_same_vectors(tmp_path: Path) -> None:
    family = EMBEDDERS["bert"]
    folder = make_model(tmp_path / "model", family)
    exact = vectors(load(folder, "embed"), texts())
    weights: dict[str, mx.array] = {}
    for name, array in load_weights(folder).items():
        if name.endswith(".weight") and ".layer." in name and "LayerNorm" not in name and array.shape[-1] % 32 == 0:
            parts = mx.quantize(array, group_size=32, bits=8)
            weights |= dict(zip((name, f"{name[:-6]}scales", f"{name[:-6]}biases"), parts, strict=True))
        else:
            weights[name] = array
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    write_json(
        folder / "config.json", {**read_json(folder / "config.json"), "quantization": {"group_size": 32, "bits": 8}}
    )
    found = vectors(load(folder, "embed"), texts())
    assert 0.99 < float((found * exact).sum(-1).min()) < 0.9999999


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("bert", {"model_type": "mpnet"}, "'mpnet' are not supported"),
        ("qwen3", {"is_causal": False}, "attends to later tokens"),
        ("qwen3", {"use_bidirectional_attention": True}, "attends to later tokens"),
        ("mistral", {"auto_map": {"AutoModel": "modeling.Model"}}, "attends to later tokens"),
        ("gemma", {"use_bidirectional_attention": False}, "use_bidirectional_attention"),
        ("bert", {"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"hidden_act": "xielu"}, "'xielu' is not supported"),
        ("nomic", {"rotary_scaling_factor": 2}, "rotary_scaling_factor = 2"),
        ("nomic", {"num_experts": 8}, "num_experts = 8"),
        ("modernbert", {"rope_scaling": {"type": "yarn"}}, "rotary embedding is scaled"),
    ],
)
def test_a_model_whose_vectors_would_be_wrong_is_refused(
    tmp_path: Path, name: str, changes: dict[str, object], reason: str
) -> None:
    folder = make_model(tmp_path / "model", EMBEDDERS[name])
    write_json(folder / "config.json", {**EMBEDDERS[name].config, **changes})
    with pytest.raises(UnusableModel, match=reason):
        load(folder, "embed")


def test_a_classifier_of_several_labels_is_no_reranker(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", RERANKERS["bert"])
    write_json(folder / "config.json", {**RERANKERS["bert"].config, "id2label": {"0": "no", "1": "yes"}})
    with pytest.raises(UnusableModel, match="2 labels"):
        load(folder, "rerank")


def test_a_module_that_is_not_built_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", EMBEDDERS["bert"])
    write_json(folder / "modules.json", [{"path": "", "type": "x.Transformer"}, {"path": "1_CNN", "type": "x.CNN"}])
    with pytest.raises(UnusableModel, match="'CNN'"):
        load(folder, "embed")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("modules.json", {"0": "Transformer"}, "no list of modules"),
        ("modules.json", ["Transformer"], "no list of modules"),
        ("modules.json", [{"type": "x.Dense", "path": "../elsewhere"}], "outside the model's"),
        ("1_Pooling/config.json", {"pooling_mode": 7}, "pooling without a mode"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "pooling attention"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
    ],
)
def test_broken_files_are_refused_with_their_fault(tmp_path: Path, file: str, content: object, reason: str) -> None:
    folder = make_model(tmp_path / "model", EMBEDDERS["bert"])
    write_json(folder / file, content)
    with pytest.raises(UnusableModel, match=reason):
        read_recipe(folder, "embed")


def test_a_config_with_nonsense_in_it_is_listed_all_the_same(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", EMBEDDERS["xlm-roberta"])
    for nonsense in ({"pad_token_id": None}, {"max_position_embeddings": "many"}, {"auto_map": 5}):
        assert max_input_tokens(folder, {**EMBEDDERS["xlm-roberta"].config, **nonsense}) > 0
