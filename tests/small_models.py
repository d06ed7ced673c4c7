"""Small models that tests make: real ones, with random weights, over the demo model's tokenizer."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from mlx_manager.demo import demo_model_path


def make_random_llama(
    folder: Path, *, seed: int = 0, context_length: int = 8192, chat_template: bool = True, **generation_config: object
) -> Path:
    """A Llama of 0.2 M parameters that babbles on at temperature 0 and does not end its turn."""
    folder.mkdir(parents=True)
    config = json.loads((demo_model_path() / "config.json").read_text())
    config |= {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "head_dim": 16}
    config["max_position_embeddings"] = context_length
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation_config))
    for name in ("tokenizer.json", "tokenizer_config.json", *(["chat_template.jinja"] if chat_template else [])):
        shutil.copy(demo_model_path() / name, folder)
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder
