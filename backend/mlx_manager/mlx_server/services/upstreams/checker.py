"""Health checks and model lists of upstreams, as `mlx_manager.providers` makes them, in the words of the settings."""

from dataclasses import replace
from typing import Any

from mlx_manager.mlx_server.upstream_settings import UpstreamKind, UpstreamSettings
from mlx_manager.providers.base import Provider, ProviderClient
from mlx_manager.providers.llamacpp import LLAMACPP
from mlx_manager.providers.mlxlm import MLXLM
from mlx_manager.providers.settings import ProviderSettings

CHECK_SECONDS = 10.0

_OPENAI = Provider(
    name="openai",
    title="an OpenAI server",
    start="",
    settings=ProviderSettings,
    default_model="default",
    is_loaded=lambda model: False,
    profile={},
    has_health=False,
)
_PROVIDERS: dict[UpstreamKind, Provider[Any]] = {"llamacpp": LLAMACPP, "mlxlm": MLXLM, "openai": _OPENAI}


def upstream_checker(upstream: UpstreamSettings) -> ProviderClient:
    # All settings are given, so that none comes from the environment.
    settings = ProviderSettings(
        base_url=upstream.base_url, model_name=None, api_key=upstream.api_key, timeout=CHECK_SECONDS
    )
    provider = replace(_PROVIDERS[upstream.kind], title=f"Upstream {upstream.name!r}", setting_prefix="its ")
    return ProviderClient(provider, settings)
