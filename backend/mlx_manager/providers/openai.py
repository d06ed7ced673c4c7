"""Any other OpenAI-compatible server, such as another mlx-manager. A kind of upstream."""

from mlx_manager.providers.base import Provider
from mlx_manager.providers.settings import ProviderSettings

OPENAI = Provider(
    name="openai",
    title="an OpenAI server",
    start="",
    settings=ProviderSettings,
    default_model="default",
    is_loaded=lambda model: False,
    profile={},
    has_health=False,
)
