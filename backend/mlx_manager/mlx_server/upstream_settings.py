"""The settings of other servers, whose models this one serves too. Knows nothing of asking them."""

import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, field_validator, model_validator
from pydantic_settings import NoDecode

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


class UpstreamsSettings(BaseModel):
    """Models of other servers, and other names for models"""

    model_config = ConfigDict(use_attribute_docstrings=True)

    upstreams: Annotated[list[UpstreamSettings], NoDecode] = []
    """Other servers whose models this one serves too, as a JSON list: [providers.md](providers.md#upstreams)."""
    aliases: Annotated[dict[str, str], NoDecode] = {}
    """Names of models that are not there, or patterns with `*`, and the id of the model that answers for each, as a
    JSON object. The first that fits counts."""
    fallbacks: Annotated[dict[str, list[str]], NoDecode] = {}
    """For a model's id, the models to try in order while it cannot be loaded or its queue is full, as a JSON object."""

    @field_validator("upstreams", "fallbacks", "aliases", mode="before")
    @classmethod
    def _read_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("upstreams")
    @classmethod
    def _names_differ(cls, upstreams: list[UpstreamSettings]) -> list[UpstreamSettings]:
        names = [upstream.name for upstream in upstreams]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two upstreams are called {twice!r}")
        return upstreams
