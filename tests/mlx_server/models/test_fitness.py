"""What a model's files tell before it is loaded: whether it can be, what it takes, what it can do."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.facts import Capabilities, read_facts
from mlx_manager.mlx_server.models.fitness import why_it_cannot_load
from mlx_manager.mlx_server.models.weights import weights_size
from mlx_manager.mlx_server.utils.mlx_backend import computes_on_cpu
from tests.small_models import make_lora


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model_path(), tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_the_demo_can_be_loaded() -> None:
    assert why_it_cannot_load(demo_model_path()) is None


@pytest.mark.parametrize(
    "model_type", ["llama", "mistral", "qwen3", "gemma3_text", "phi3", "falcon_mamba", "gpt_oss", "lfm2-vl"]
)
def test_architectures_of_mlx_lm_and_other_names_of_them_are_known(folder: Path, model_type: str) -> None:
    change_config(folder, model_type=model_type)
    assert why_it_cannot_load(folder) is None


@pytest.mark.parametrize("model_type", ["perceptron", "", None, "../llama", 3])
def test_other_architectures_are_not(folder: Path, model_type: object) -> None:
    change_config(folder, model_type=model_type)
    assert f"model_type {model_type!r}" in (why_it_cannot_load(folder) or "")


def test_the_nearest_architecture_is_named(folder: Path) -> None:
    change_config(folder, model_type="qwen3_mo")
    assert "nearest supported one is 'qwen3_moe'" in (why_it_cannot_load(folder) or "")


def test_code_that_a_model_brings_is_not_run_unless_it_is_trusted(folder: Path) -> None:
    change_config(folder, model_file="evil.py")
    assert "evil.py" in (why_it_cannot_load(folder) or "")
    assert why_it_cannot_load(folder, trust_remote_code=True) is None


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, None),
        ({"quantization": {"group_size": 64, "bits": 4}}, "4-bit"),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
            "compressed-tensors",
        ),
        ({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}, "mxfp4"),
    ],
)
def test_quantisation_that_runs_is_named(folder: Path, changes: dict[str, object], name: str | None) -> None:
    change_config(folder, **changes)
    facts = read_facts(ModelEntry("model", folder))
    assert facts is not None
    assert facts.quantization == name
    assert why_it_cannot_load(folder) is None


@pytest.mark.parametrize(
    ("quantisation", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'"),
        ({"quant_method": "gptq", "bits": 8}, "gptq of 8 bits"),
        ({"quant_method": "awq", "bits": 3}, "awq of 3 bits"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "'float-quantized'"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "'FP8'"),
        ({"bits": 4, "group_size": 64}, "names no quant_method"),
    ],
)
def test_quantisation_that_does_not_run_is_told_of(folder: Path, quantisation: dict[str, object], said: str) -> None:
    change_config(folder, quantization_config=quantisation)
    assert said in (why_it_cannot_load(folder) or "")


def test_gptq_with_an_order_of_its_groups_does_not_run(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert why_it_cannot_load(folder) is None
    mx.save_safetensors(str(folder / "model-2.safetensors"), {"model.layers.0.q.g_idx": mx.zeros((8,), mx.int32)})
    assert "g_idx" in (why_it_cannot_load(folder) or "")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pytorch_model.bin", "PyTorch files"),
        ("model-q4_0.gguf", "GGUF"),
        ("consolidated.00.pth", "PyTorch files"),
        ("consolidated.safetensors", "another name"),
        ("weights.npz", "NumPy"),
    ],
)
def test_weights_in_files_that_mlx_lm_does_not_load_are_named(folder: Path, file: str, said: str) -> None:
    (folder / "model.safetensors").rename(folder / file)
    reason = why_it_cannot_load(folder) or ""
    assert said in reason
    assert file in reason


def test_a_folder_with_a_gguf_file_alone_is_one_for_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    assert "llama.cpp" in (why_it_cannot_load(tmp_path) or "")


@pytest.mark.parametrize("key", ["base_model_name_or_path", "model"])
def test_a_folder_with_an_adapter_alone_names_the_base_model(tmp_path: Path, key: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({key: "org/base"}))
    reason = why_it_cannot_load(tmp_path) or ""
    assert "an adapter and no model" in reason
    assert "'org/base'" in reason


def test_an_adapter_must_be_one_of_mlx_lm(folder: Path, tmp_path: Path) -> None:
    adapter = make_lora(tmp_path / "adapter", demo_model_path())
    assert why_it_cannot_load(folder, adapter=adapter) is None
    (adapter / "adapters.safetensors").rename(adapter / "adapter_model.safetensors")
    assert "format of PEFT" in (why_it_cannot_load(folder, adapter=adapter) or "")
    (adapter / "adapter_model.safetensors").unlink()
    assert "no adapters.safetensors" in (why_it_cannot_load(folder, adapter=adapter) or "")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    assert "merge_and_unload" in (why_it_cannot_load(folder, adapter=adapter) or "")
    (adapter / "adapter_config.json").unlink()
    assert "no readable adapter_config.json" in (why_it_cannot_load(folder, adapter=adapter) or "")


def test_damaged_files_are_told_of_and_what_to_do(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content, expected in [
        (whole[:-100], "truncated"),
        (b"", "not a safetensors"),
        (b"GGUF" * 9, "not a safetensors"),
    ]:
        weights.write_bytes(content)
        reason = why_it_cannot_load(folder) or ""
        assert expected in reason
        assert "Download the model again" in reason
    weights.unlink()
    assert "no model*.safetensors" in (why_it_cannot_load(folder) or "")


def test_missing_shard_tokenizer_or_config_is_told_of(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}))
    assert "model-00002.safetensors" in (why_it_cannot_load(folder) or "")
    index.unlink()
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in (why_it_cannot_load(folder) or "")
    (folder / "config.json").write_text("[")
    assert "config.json" in (why_it_cannot_load(folder) or "")


def test_weights_in_memory_are_float32_where_workers_compute_on_the_cpu(tmp_path: Path) -> None:
    arrays = {"a": mx.zeros((100,), mx.bfloat16), "b": mx.zeros((10,), mx.uint32), "c": mx.zeros((7,), mx.float32)}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    mx.save_safetensors(str(tmp_path / "other.safetensors"), arrays)  # mlx-lm does not load it
    expected = (400 if computes_on_cpu() else 200) + 40 + 28
    assert weights_size(tmp_path).memory_bytes == expected


def test_facts_of_the_demo() -> None:
    facts = read_facts(ModelEntry("demo", demo_model_path()))
    assert facts is not None
    assert (facts.family, facts.quantization) == ("llama", None)
    assert facts.context_length == 8192
    assert facts.capabilities == Capabilities(chat=True, tools="native", reasoning=True, structured_output=True)


def test_model_without_a_chat_template_cannot_chat_and_the_user_may_give_one(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    facts = read_facts(ModelEntry("model", folder))
    assert facts is not None
    assert facts.capabilities == Capabilities(chat=False, tools=False, reasoning=False, structured_output=True)
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0].content }}")
    settings = ModelSettings(id="model", path=folder, chat_template=template, context_length=100)
    facts = read_facts(ModelEntry("model", folder, settings=settings))
    assert facts is not None
    assert (facts.capabilities.chat, facts.capabilities.tools, facts.context_length) == (True, "prompted", 100)


def test_nothing_is_known_of_a_model_that_is_not_here() -> None:
    assert read_facts(ModelEntry("org/not-here", None)) is None
