"""Adapters for model families: prompts, stop tokens and output formats."""

from mlx_manager.mlx_server.models.adapters.base import DefaultAdapter, ModelAdapter
from mlx_manager.mlx_server.models.adapters.llama import LlamaAdapter
from mlx_manager.mlx_server.models.adapters.output import FormatsOutput, get_output_format, special_tokens
from mlx_manager.mlx_server.models.adapters.registry import (
    detect_model_family,
    get_adapter,
    get_supported_families,
    register_adapter,
)
from mlx_manager.mlx_server.models.adapters.traits import TemplateTraits, probe_template

__all__ = [
    "DefaultAdapter",
    "FormatsOutput",
    "LlamaAdapter",
    "ModelAdapter",
    "TemplateTraits",
    "detect_model_family",
    "get_adapter",
    "get_output_format",
    "get_supported_families",
    "probe_template",
    "register_adapter",
    "special_tokens",
]
