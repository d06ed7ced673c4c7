"""Writes the embedded demo model as a GGUF file for llama.cpp: `python scripts/demo_to_gguf.py demo.gguf`.

Needs only the `gguf` package.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGUFWriter,
    LlamaFileType,
    TokenType,
    get_tensor_name_map,
)
from gguf.utility import SafetensorsLocal

DEMO = Path(__file__).parents[1] / "backend" / "mlx_manager" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, default=DEMO, help="folder of a Llama with the demo model's tokenizer")
    arguments = parser.parse_args()
    convert(arguments.model, arguments.output)


def convert(folder: Path, output: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(output, MODEL_ARCH_NAMES[MODEL_ARCH.LLAMA])
    writer.add_name("demo")
    write_architecture(writer, config)
    write_tokenizer(writer, config, folder)
    write_weights(writer, config, folder / "model.safetensors")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_architecture(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def write_tokenizer(writer: GGUFWriter, config: dict[str, Any], folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids: dict[str, int] = {**tokenizer["model"]["vocab"]}
    kinds = dict.fromkeys(ids.values(), TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        ids[added["content"]] = added["id"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    in_order = sorted(ids, key=lambda token: ids[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")  # splits text by the same expression as the demo model
    writer.add_token_list(in_order)
    writer.add_token_types([kinds[ids[token]] for token in in_order])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_eot_token_id(ids["<|eot_id|>"])
    writer.add_eom_token_id(ids["<|eom_id|>"])
    writer.add_add_bos_token(False)  # the chat template adds it
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def write_weights(writer: GGUFWriter, config: dict[str, Any], weights: Path) -> None:
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in SafetensorsLocal(weights).tensors.items():
        array = float32(tensor.mmap_bytes(), tensor.dtype).reshape(tensor.shape)
        projection = name.split(".")[-2]
        if projection in heads:
            array = interleave(array, heads[projection])
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)


def float32(stored: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    if dtype == "BF16":  # the upper half of a float32
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return stored.view({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


def interleave(rows: np.ndarray[Any, np.dtype[np.float32]], heads: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Reorders rows from rotated halves of a head, (heads, 2, half, in), to rotated neighbours."""
    return np.ascontiguousarray(rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape))


if __name__ == "__main__":
    main()
