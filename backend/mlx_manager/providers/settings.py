"""Settings of the provider clients, from the environment variables `LLAMACPP_*` and `MLXLM_*`."""

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mlx_manager.addresses import header_key


class ProviderSettings(BaseSettings):
    """Settings that both servers share."""

    # Keeps an invalid key out of the error.
    model_config = SettingsConfigDict(env_ignore_empty=True, protected_namespaces=(), hide_input_in_errors=True)

    base_url: str = "http://localhost:8080/v1"
    """With or without a trailing `/v1`."""
    model_name: str | None = None
    """The model to use; if unset, detection chooses one of the server's list."""
    api_key: SecretStr | None = None
    timeout: float = Field(default=30, gt=0)
    """Seconds for a health check, a detection or a client call; generation may take longer."""

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        return header_key(key)


class LlamaCppSettings(ProviderSettings):
    model_config = SettingsConfigDict(env_prefix="LLAMACPP_")


class MlxLmSettings(ProviderSettings):
    model_config = SettingsConfigDict(env_prefix="MLXLM_")
