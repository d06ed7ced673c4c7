"""mlx_lm.server. It lists every model of the Hugging Face cache, and loads the model that a request names."""

import logging

from mlx_manager.providers.base import ListedModel, ModelError, Provider, ProviderClient
from mlx_manager.providers.settings import MlxLmSettings

logger = logging.getLogger(__name__)


def _is_loaded(model: ListedModel) -> bool:
    """Cached models have ids; a path is the folder that the server was started with."""
    return str(model["id"]).startswith("/")


MLXLM = Provider(
    name="mlxlm",
    title="mlx_lm.server",
    start="mlx_lm.server --model MODEL",
    settings=MlxLmSettings,
    default_model="default_model",
    is_loaded=_is_loaded,
    profile={
        # It has no response_format and no tool_choice, and parses the tool calls of some models only.
        "default_structured_output_mode": "prompted",
        "supports_json_schema_output": False,
        "supports_json_object_output": False,
        "supports_forced_tool_choice": False,
    },
    empty_reply_remedy="Create the Hugging Face cache that it needs with `mkdir -p ~/.cache/huggingface/hub`.",
)


class MlxLmClient(ProviderClient):
    """`base_url` ends in `/v1`."""

    def __init__(self, settings: MlxLmSettings | None = None) -> None:
        super().__init__(MLXLM, MLXLM.read_settings(settings))
        self.open()
        self.base_url = f"{self.root}/v1"

    async def list_models(self) -> list[ListedModel]:
        """The entries of `/v1/models`; none, with a warning, if the request fails."""
        try:
            return await self.fetch_models()
        except ModelError as exc:
            logger.warning("Cannot list models: %s", exc)
            return []

    async def get_model_info(self) -> ListedModel | None:
        """The entry of the model that detection chooses; None if no model is listed."""
        models = await self.list_models()
        chosen = self.choose(models).model_id
        return next((model for model in models if model["id"] == chosen), None)


detect_mlxlm_model = MLXLM.detect_model
mlxlm_health_check = MLXLM.check_health
create_mlxlm_model = MLXLM.create_model
create_mlxlm_model_async = MLXLM.create_model_async
