"""Writes a trained model as a folder for `mlx_lm.load`. Replaces an older one in a single rename."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from demo_model.chat import BEGIN_OF_TEXT, END_OF_TEXT
from demo_model.network import Llama
from demo_model.tokenizer import PAD, save_tokenizer

SAMPLING = {"do_sample": True, "temperature": 0.3, "top_p": 0.9}


def export(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Keeps other files in the folder (the package's `__init__.py`, the draft model)."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, new)
    new.mkdir(parents=True, exist_ok=True)
    _write(model, tokenizer, new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights in bfloat16, the type of the multiplications in training."""
    weights = {f"model.{name}": weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    weights_file = folder / "model.safetensors"
    save_file(weights, weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)
    token_ids: dict[str, object] = {
        "bos_token_id": tokenizer.token_to_id(BEGIN_OF_TEXT),
        "eos_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    _write_json(folder / "config.json", model.shape.config() | token_ids)
    _write_json(folder / "generation_config.json", token_ids | SAMPLING)
    save_tokenizer(tokenizer, folder)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
