"""llama.cpp servers: llama-server, and llama-cpp-python, which lacks /health, /slots and /props."""

from typing import Any

from mlx_manager.providers.base import ListedModel, Provider, ProviderClient, ProviderHealthStatus
from mlx_manager.providers.settings import LlamaCppSettings


def _is_loaded(model: ListedModel) -> bool:
    """llama-server as a router of several models gives each a status."""
    status = model.get("status")
    return isinstance(status, dict) and status.get("value") == "loaded"


LLAMACPP = Provider(
    name="llamacpp",
    title="llama.cpp",
    start="llama-server -m MODEL.gguf",
    settings=LlamaCppSettings,
    default_model="default",  # a server with one model accepts every name
    is_loaded=_is_loaded,
    profile={
        "supports_json_schema_output": True,
        "supports_json_object_output": True,
        "native_output_requires_schema_in_instructions": True,  # the grammar limits tokens; the model sees no schema
        "openai_chat_supports_max_completion_tokens": False,  # llama-cpp-python knows only max_tokens
    },
)


class LlamaCppClient(ProviderClient):
    """`base_url` (without `/v1`) defaults to the environment's; the key comes from the environment."""

    def __init__(self, base_url: str | None = None, timeout: float = 30) -> None:
        given = {"base_url": base_url} if base_url is not None else {}
        super().__init__(LLAMACPP, LLAMACPP.read_settings(**given, timeout=timeout))
        self.open()
        self.base_url = self.root

    async def health_check(self) -> ProviderHealthStatus:
        return await self.check()

    async def get_slots(self) -> list[dict[str, Any]]:
        """The state of each slot. Raises ModelError, also if the server was started without slots."""
        slots = await self.fetch_json("/slots")
        if not isinstance(slots, list):
            raise self.unexpected("/slots", "a list", slots)
        return slots

    async def get_props(self) -> dict[str, Any]:
        """The server's properties: context length, chat template, build. Raises ModelError."""
        props = await self.fetch_json("/props")
        if not isinstance(props, dict):
            raise self.unexpected("/props", "an object", props)
        return props

    async def list_models(self) -> list[ListedModel]:
        """The entries of `/v1/models`. Raises ModelError."""
        return await self.fetch_models()


detect_llamacpp_model = LLAMACPP.detect_model
llamacpp_health_check = LLAMACPP.check_health
create_llamacpp_model = LLAMACPP.create_model
create_llamacpp_model_async = LLAMACPP.create_model_async
