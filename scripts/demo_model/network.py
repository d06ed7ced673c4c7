"""The Llama to train, in PyTorch, with the arithmetic and parameter names of `mlx_lm.models.llama`."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 512
    vocabulary: int = 2048
    context: int = 8192
    rope_theta: float = 100_000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """config.json without the token ids."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.mlp,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, hidden)."""
        batch, length, _ = x.shape
        queries = _rotate(self._heads(self.q_proj(x)), rotation)
        keys = _rotate(self._heads(self.k_proj(x)), rotation)
        values = self._heads(self.v_proj(x))
        repeats = self.shape.heads // self.shape.kv_heads
        keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
        mixed = _attend(queries, keys, values)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, H * D) -> (B, H, T, D)."""
        return x.view(*x.shape[:2], -1, self.shape.head_dim).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        _initialise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) -> final hidden states (B, T, hidden)."""
        x = self.embed_tokens(tokens)
        rotation = _rotation(self.shape, tokens.shape[1], x.dtype)
        for block in self.layers:
            x = block(x, rotation)
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)


def _initialise(model: Llama) -> None:
    """Initialises small embeddings (also the output layer), and blocks that start as the identity."""
    nn.init.normal_(model.embed_tokens.weight, std=0.02)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)


def _rotation(shape: Shape, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, D) of rotary embeddings, halves rotated (not interleaved)."""
    half = shape.head_dim // 2
    speeds = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), speeds).repeat(1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention (B, H, T, D), not fused: for short rows on a CPU it is faster than the fused kernel."""
    batch, _, length, width = queries.shape
    later = torch.full((length, length), -torch.inf, dtype=queries.dtype).triu(1)
    q, k, v = queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)
    scores = torch.baddbmm(later.expand(len(q), -1, -1), q, k.transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1).to(v.dtype), v).reshape(batch, -1, length, width)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x (B, H, T, D)."""
    cosines, sines = rotation
    first, second = x.chunk(2, -1)
    rotated: Tensor = x * cosines.to(x.dtype) + torch.cat((-second, first), -1) * sines.to(x.dtype)
    return rotated
