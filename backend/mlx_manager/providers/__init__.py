"""Clients for llama.cpp and mlx-lm servers: detection, health checks, and Pydantic AI models.

`base.py` holds the shared code, `llamacpp.py` and `mlxlm.py` the differences. Knows nothing of `mlx_server`.
"""

from mlx_manager.providers.base import ModelError, ProviderHealthStatus
from mlx_manager.providers.llamacpp import (
    LlamaCppClient,
    create_llamacpp_model,
    create_llamacpp_model_async,
    detect_llamacpp_model,
    llamacpp_health_check,
)
from mlx_manager.providers.mlxlm import (
    MlxLmClient,
    create_mlxlm_model,
    create_mlxlm_model_async,
    detect_mlxlm_model,
    mlxlm_health_check,
)
from mlx_manager.providers.settings import LlamaCppSettings, MlxLmSettings

__all__ = [
    "LlamaCppClient",
    "LlamaCppSettings",
    "MlxLmClient",
    "MlxLmSettings",
    "ModelError",
    "ProviderHealthStatus",
    "create_llamacpp_model",
    "create_llamacpp_model_async",
    "create_mlxlm_model",
    "create_mlxlm_model_async",
    "detect_llamacpp_model",
    "detect_mlxlm_model",
    "llamacpp_health_check",
    "mlxlm_health_check",
]
