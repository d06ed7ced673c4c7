"""What a model's files tell before it is loaded: whether it can be, what it takes, what it can do."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.config import ModelSettings
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.facts import Capabilities, read_facts
from mlx_manager.mlx_server.models.fitness import why_it_cannot_load
from mlx_manager.mlx_server.models.weights import weights_size
from mlx_manager.mlx_server.utils.mlx_backend import computes_on_cpu


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model_path(), tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_the_demo_can_be_loaded() -> None:
    assert why_it_cannot_load(demo_model_path()) is None


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gemma3_text", "phi3", "falcon_mamba", "gpt_oss"])
def test_architectures_of_mlx_lm_and_other_names_of_them_are_known(folder: Path, model_type: str) -> None:
    change_config(folder, model_type=model_type)
    assert why_it_cannot_load(folder) is None


@pytest.mark.parametrize("model_type", ["perceptron", "", None, "../llama", 3])
def test_other_architectures_are_not(folder: Path, model_type: object) -> None:
    change_config(folder, model_type=model_type)
    assert f"model_type {model_type!r}" in (why_it_cannot_load(folder) or "")


def test_code_that_a_model_brings_is_not_run_unless_it_is_trusted(folder: Path) -> None:
    change_config(folder, model_file="evil.py")
    assert "evil.py" in (why_it_cannot_load(folder) or "")
    assert why_it_cannot_load(folder, trust_remote_code=True) is None


@pytest.mark.parametrize(
    ("changes", "name", "runs"),
    [
        ({}, None, True),
        ({"quantization": {"group_size": 64, "bits": 4}}, "4-bit", True),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "mxfp4", True),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq", True),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes", False),
    ],
)
def test_quantisation_is_named_and_one_that_does_not_run_is_told_of(
    folder: Path, changes: dict[str, object], name: str | None, runs: bool
) -> None:
    change_config(folder, **changes)
    facts = read_facts(ModelEntry("model", folder))
    assert facts is not None
    assert facts.quantization == name
    reason = why_it_cannot_load(folder)
    assert (reason is None) == runs
    assert runs or repr(name) in (reason or "")


def test_damaged_files_are_told_of_and_what_to_do(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content, expected in [(whole[:-100], "cut short"), (b"", "no safetensors"), (b"GGUF" * 9, "no safetensors")]:
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
    for file in folder.glob("tokenizer*"):
        file.unlink()
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
    assert facts.capabilities == Capabilities(chat=True, tools=True, reasoning=True, structured_output=True)


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
    assert (facts.capabilities.chat, facts.capabilities.tools, facts.context_length) == (True, False, 100)


def test_nothing_is_known_of_a_model_that_is_not_here() -> None:
    assert read_facts(ModelEntry("org/not-here", None)) is None
