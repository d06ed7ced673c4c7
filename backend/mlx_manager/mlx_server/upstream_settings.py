"""One entry of the setting `upstreams`: another server whose models this one serves too. Knows nothing of asking it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, field_validator, model_validator

from mlx_manager.addresses import header_key, server_root

UpstreamKind = Literal["llamacpp", "mlxlm", "openai"]
ModelId = Annotated[str, StringConstraints(min_length=1)]


class UpstreamSettings(BaseModel):
    """The id of each of its models here is `prefix` and the upstream's own id for it."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]
    """What errors, logs and `owned_by` call it."""
    kind: UpstreamKind
    base_url: str
    """With `/v1` at its end or without."""
    api_key: SecretStr | None = None
    models: Annotated[list[ModelId], Field(min_length=1)] | None = None
    """The upstream's own ids of the models to serve; all that it lists when not given."""
    prefix: str | None = None
    """When not given: none for `models`, and the name with a slash for what the upstream lists."""
    fallback: list[ModelId] = []
    """Models that answer in place of this upstream's while it cannot, the first one that can."""
    timeout_seconds: float = Field(default=300, gt=0, le=1e9, allow_inf_nan=False)
    """The longest that it may say nothing while it answers."""

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        server_root(url)
        return url

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        return header_key(key)

    @model_validator(mode="after")
    def _lists_under_a_prefix(self) -> Self:
        if self.models is None and self.prefix == "":
            raise ValueError("without a prefix, the models to serve have to be named: give models, or a prefix")
        return self

    @property
    def prefix_of_ids(self) -> str:
        if self.prefix is not None:
            return self.prefix
        return "" if self.models is not None else f"{self.name}/"
