"""The dtypes of a loaded model's weights: what suits the device, and what the settings ask for. Runs in the worker."""

import logging

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model

from mlx_manager.mlx_server.utils.memory import bytes_text

OVERFLOWING_FAMILIES = ("gemma",)
"""Model types whose activations exceed float16's largest number. They begin with these names."""
FEW_BITS = 4
"""Weights with at most this many bits decode more slowly in a batch on CUDA than weights of 16 bits."""
LARGEST_FLOAT16 = 65_504
_PACKED_BITS = 32

logger = logging.getLogger(__name__)


def dequantized(model: nn.Module) -> nn.Module:
    """The model with its quantised weights in the dtype of their scales."""
    model = dequantize_model(model)
    mx.eval(model.parameters())
    return model


def to_float32(model: nn.Module) -> None:
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())


def to_float16(model: nn.Module, model_type: str) -> None:
    """Casts what is bfloat16, the scales of quantised weights included, unless float16 cannot hold the model."""
    fault = _why_not_float16(model, model_type)
    if fault is not None:
        logger.warning("This model computes in bfloat16, which is slow on this chip: %s", fault)
        return
    model.set_dtype(mx.float16, lambda dtype: dtype == mx.bfloat16)
    mx.eval(model.parameters())


def warn_of_few_bits(model: nn.Module, memory_bytes: int) -> None:
    """For CUDA. Names the remedy if the dequantised weights fit into `memory_bytes`."""
    quantized = [module for module in model.modules() if getattr(module, "bits", _PACKED_BITS) <= FEW_BITS]
    if not quantized:
        return
    held = sum(weight.nbytes for _, weight in tree_flatten(model.parameters()))
    more = sum(int(module.weight.nbytes * (16 / module.bits - 1)) for module in quantized)
    if held + more > memory_bytes:
        remedy = f"They need {bytes_text(held + more)} when dequantised, and {bytes_text(memory_bytes)} are available"
    else:
        remedy = (
            f"Set dequantize = true in the model's [[models]] entry to hold them in 16 bits: {bytes_text(held + more)} "
            f"instead of {bytes_text(held)}"
        )
    logger.warning("Weights of %d bits decode slowly in a batch on CUDA. %s", quantized[0].bits, remedy)


def _why_not_float16(model: nn.Module, model_type: str) -> str | None:
    if model_type.startswith(OVERFLOWING_FAMILIES):
        return f"models of type {model_type} overflow float16"
    for name, weight in tree_flatten(model.parameters()):
        if weight.dtype == mx.bfloat16 and mx.any(mx.abs(weight) > LARGEST_FLOAT16).item():
            return f"its weight {name} does not fit into float16"
    return None
