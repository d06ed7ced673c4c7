"""The benchmark's models: Llamas with random weights and a tokenizer without an end-of-sequence token.

So every request generates exactly max_tokens tokens, and every token is a few letters of text.
"""

import itertools
import json
import string
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE


@dataclass(frozen=True, slots=True)
class ModelSize:
    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    dtype: mx.Dtype = mx.float32


SMALL = ModelSize("a", vocabulary=4_096, hidden=128, layers=4, heads=4, kv_heads=2, mlp=384)
"""1.3 M parameters. A decode step takes one or two milliseconds, so a server's own cost per token is visible."""
LARGE = ModelSize("b", vocabulary=32_000, hidden=512, layers=8, heads=8, kv_heads=4, mlp=1_536)
"""41 M parameters."""
GPU_SMALL = ModelSize(
    "c", vocabulary=32_000, hidden=2_048, layers=16, heads=32, kv_heads=8, mlp=8_192, dtype=mx.bfloat16
)
"""1.04 G parameters."""
GPU_LARGE = ModelSize(
    "d", vocabulary=32_000, hidden=4_096, layers=32, heads=32, kv_heads=8, mlp=14_336, dtype=mx.bfloat16
)
"""7.1 G parameters."""


def computes_on_gpu() -> bool:
    return mx.is_available(mx.gpu)


def make_model(folder: Path, size: ModelSize) -> Path:
    """Writes the model into `folder`, except existing weights. The weights are always the same."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "intermediate_size": size.mlp,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    if (folder / "model.safetensors").exists():
        return folder
    _make_tokenizer(size.vocabulary).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    model.set_dtype(size.dtype)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    del model
    mx.clear_cache()  # the GPU's memory is for the server
    return folder


def _make_tokenizer(vocabulary: int) -> Tokenizer:
    """Byte-level BPE over the 256 bytes and words of two, three and four letters, until the vocabulary is full."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    words = list(string.ascii_lowercase)
    while len(tokens) < vocabulary:
        longer = []
        for word, letter in itertools.product(words, string.ascii_lowercase):
            if len(tokens) == vocabulary:
                break
            tokens.append(word + letter)
            merges.append((word, letter))
            longer.append(word + letter)
        words = longer
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
