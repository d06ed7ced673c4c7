"""config.json, whichever version of transformers wrote it: the same model comes of it, or none."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import _get_classes

from mlx_manager.mlx_server.engine.generator import load
from mlx_manager.mlx_server.engine.model_config import UnusableConfig, complete, model_classes
from tests.mlx_server.engine.architectures import ARCHITECTURES, Config, as_transformers_5_writes_it, tiny_config
from tests.small_models import make_random_llama

PROMPT = mx.array([[(37 * place) % 128 for place in range(100)]])


def logits(config: Config) -> mx.array:
    """Of a model with weights that depend on its shape alone."""
    model_class, args_class = model_classes(complete(config))
    mx.random.seed(7)
    model = model_class(args_class.from_dict(complete(config)))
    output: mx.array = model(PROMPT)
    return output


def logits_of_mlx_lm(config: Config) -> mx.array:
    model_class, args_class = _get_classes(config)
    mx.random.seed(7)
    output: mx.array = model_class(args_class.from_dict(config))(PROMPT)
    return output


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_old_and_new_form_of_a_config_are_the_same_model(architecture: str) -> None:
    config = tiny_config(architecture)
    expected = logits_of_mlx_lm(config)
    assert mx.array_equal(logits(config), expected)
    assert mx.array_equal(logits(as_transformers_5_writes_it(config)), expected)


@pytest.mark.parametrize("outer", ["pixtral", "mistral3", "lfm2-vl", "qwen2_vl"])
def test_the_config_of_a_language_model_inside_of_another_is_read_too(outer: str) -> None:
    inner = {"lfm2-vl": "lfm2", "qwen2_vl": "qwen2"}.get(outer, "llama")
    config = {"model_type": outer, "vocab_size": 128, "text_config": tiny_config(inner)}
    assert mx.array_equal(logits(as_transformers_5_writes_it(config)), logits_of_mlx_lm(config))


@pytest.mark.parametrize("architecture", ["qwen3_5", "mellum", "glm_moe_dsa"])
def test_the_older_form_is_read_by_modules_that_know_the_newer_one_alone(architecture: str) -> None:
    config: Config = {"model_type": architecture, "layer_types": ["sliding_attention", "full_attention"]}
    config |= {"rope_theta": 54321.0, "partial_rotary_factor": 0.5, "rope_local_base_freq": 432.0}
    parameters = complete(config)["rope_parameters"]
    assert (parameters["rope_theta"], parameters["partial_rotary_factor"]) == (54321.0, 0.5)
    assert parameters["full_attention"]["rope_theta"] == 54321.0
    assert parameters["sliding_attention"]["rope_theta"] == 432.0


def test_renamed_fields_and_layers_have_their_older_names_beside_the_new_ones() -> None:
    assert complete({"model_type": "qwen3_moe", "num_local_experts": 8})["num_experts"] == 8
    layers = complete({"model_type": "granitemoehybrid", "layer_types": ["linear_attention", "full_attention"]})
    assert layers["layer_types"] == ["mamba", "attention"]
    sliding = [*["sliding_attention"] * 2, "full_attention"] * 2
    assert complete({"model_type": "cohere2", "layer_types": sliding})["sliding_window_pattern"] == 3
    linear = [*["linear_attention"] * 4, "full_attention"]
    assert complete({"model_type": "qwen3_next", "layer_types": linear})["full_attention_interval"] == 5


SCALINGS = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
    {"type": "su", "long_factor": [2.0] * 8, "short_factor": [1.0] * 8, "original_max_position_embeddings": 64},
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("form", ["old", "new"])
@pytest.mark.parametrize(
    ("architecture", "applies"), [("llama", True), ("olmo2", True), ("mixtral", False), ("gemma2", False)]
)
def test_a_scaled_rotary_embedding_is_applied_or_the_model_is_refused(
    architecture: str, applies: bool, form: str, scaling: Config
) -> None:
    config = tiny_config(architecture) | {"max_position_embeddings": 64}
    scaled = config | {"rope_scaling": scaling}
    if form == "new":
        scaled = as_transformers_5_writes_it(scaled)
    if applies:
        assert not mx.array_equal(logits(scaled), logits(config))
        return
    with pytest.raises(UnusableConfig, match=f"{architecture}.*ignores"):
        logits(scaled)


def test_a_base_of_their_own_for_some_layers_is_applied_or_the_model_is_refused() -> None:
    parameters = {
        "full_attention": {"rope_type": "default", "rope_theta": 54321.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 432.0},
    }
    for architecture, applies in (("gemma3_text", True), ("olmo3", False)):
        config = tiny_config(architecture) | {"rope_parameters": parameters}
        if applies:
            assert not mx.array_equal(logits(config), logits(tiny_config(architecture) | {"rope_local_base_freq": 7.0}))
        else:
            with pytest.raises(UnusableConfig, match="rope_theta for sliding_attention"):
                logits(config)


@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, {"type": "mrope", "mrope_section": [1, 2, 5]}, {}, None])
def test_what_scales_nothing_is_no_reason_to_refuse_a_model(scaling: Config | None) -> None:
    config = tiny_config("mixtral")
    assert mx.array_equal(logits(config | {"rope_scaling": scaling}), logits_of_mlx_lm(config))


def test_the_worker_loads_a_folder_of_the_newer_form_as_one_of_the_older(tmp_path: Path) -> None:
    folder = make_random_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = 54321.0
    outputs = []
    for written in (config, as_transformers_5_writes_it(config), config | {"rope_theta": 10000.0}):
        (folder / "config.json").write_text(json.dumps(written))
        outputs.append(load(folder)(PROMPT))
    assert mx.array_equal(outputs[0], outputs[1])
    assert not mx.array_equal(outputs[0], outputs[2])
