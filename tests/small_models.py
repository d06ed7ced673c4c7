"""Small models that tests make: real ones, with random weights, over the demo model's tokenizer."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import gemma, llama, qwen2, qwen3
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

from mlx_manager.demo import demo_model_path

_FAMILIES = {"llama": llama, "qwen2": qwen2, "gemma": gemma, "qwen3": qwen3}


def make_random_llama(
    folder: Path, *, seed: int = 0, context_length: int = 8192, chat_template: bool = True, **generation_config: object
) -> Path:
    """A Llama of 0.2 M parameters that babbles on at temperature 0 and does not end its turn."""
    return make_random_model(
        folder, seed=seed, context_length=context_length, chat_template=chat_template, generation=generation_config
    )


def make_random_model(
    folder: Path,
    *,
    model_type: str = "llama",
    hidden_size: int = 64,
    seed: int = 0,
    context_length: int = 8192,
    chat_template: bool = True,
    generation: Mapping[str, object] = MappingProxyType({}),
    extra_tokens: Sequence[str] = (),
    more: Mapping[str, object] = MappingProxyType({}),
) -> Path:
    """A model of that type of mlx-lm's (llama, qwen2, qwen3, gemma), the larger the larger its `hidden_size`.

    `extra_tokens` come behind those of the demo model's vocabulary. `more` goes into its config.
    """
    folder.mkdir(parents=True)
    config = json.loads((demo_model_path() / "config.json").read_text())
    config |= {"hidden_size": hidden_size, "num_hidden_layers": 2, "intermediate_size": 128, "head_dim": 16}
    config |= {"max_position_embeddings": context_length, "model_type": model_type, **more}
    family = _FAMILIES[model_type]
    config["vocab_size"] += len(extra_tokens)
    config["architectures"] = [f"{model_type.capitalize()}ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(dict(generation)))
    for name in ("tokenizer.json", "tokenizer_config.json", *(["chat_template.jinja"] if chat_template else [])):
        shutil.copy(demo_model_path() / name, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(extra_tokens))
    tokenizer.save(str(folder / "tokenizer.json"))
    mx.random.seed(seed)
    model = family.Model(family.ModelArgs.from_dict(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


def make_lora(folder: Path, base: Path, *, seed: int = 5) -> Path:
    """A LoRA adapter for the model in `base`, as mlx-lm's trainer saves it, that changes what the model says."""
    folder.mkdir(parents=True)
    lora: dict[str, Any] = {
        "num_layers": 2,
        "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0},
        "fine_tune_type": "lora",
    }
    (folder / "adapter_config.json").write_text(json.dumps(lora))
    model, _ = load_model(base)
    linear_to_lora_layers(model, lora["num_layers"], lora["lora_parameters"])
    mx.random.seed(seed)
    trained = dict(tree_flatten(model.trainable_parameters()))
    weights = {name: mx.random.normal(part.shape) for name, part in trained.items() if ".lora_" in name}
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    return folder
