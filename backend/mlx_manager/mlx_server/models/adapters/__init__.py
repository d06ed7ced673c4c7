"""Adapters for model families, by protocol."""

from mlx_manager.mlx_server.models.adapters.base import DefaultAdapter, ModelAdapter
from mlx_manager.mlx_server.models.adapters.llama import LlamaAdapter
from mlx_manager.mlx_server.models.adapters.registry import (
    detect_model_family,
    get_adapter,
    get_supported_families,
    register_adapter,
)

__all__ = [
    "DefaultAdapter",
    "LlamaAdapter",
    "ModelAdapter",
    "detect_model_family",
    "get_adapter",
    "get_supported_families",
    "register_adapter",
]
