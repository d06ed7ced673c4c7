"""The settings of upstreams: other servers whose models this server offers. Does not connect to them."""

import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, field_validator, model_validator
from pydantic_settings import NoDecode

from mlx_manager.addresses import header_key, server_root

UpstreamKind = Literal["llamacpp", "mlxlm", "openai"]
ModelId = Annotated[str, StringConstraints(min_length=1)]


class UpstreamSettings(BaseModel):
    """One upstream. Its models have the id `prefix` + the upstream's own id."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]
    """The name in errors, logs and `owned_by`."""
    kind: UpstreamKind
    base_url: str
    """The URL, with or without `/v1` at its end."""
    api_key: SecretStr | None = None
    models: Annotated[list[ModelId], Field(min_length=1)] | None = None
    """The upstream's own ids of the models to offer. Default: all that it lists."""
    prefix: str | None = None
    """Default: empty with `models`, otherwise the name and a slash."""
    fallback: list[ModelId] = []
    """Models to try in order while the upstream is unavailable."""
    timeout_seconds: float = Field(default=300, gt=0, le=1e9, allow_inf_nan=False)
    """Longest pause in an answer of the upstream."""

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        server_root(url)
        return url

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        return header_key(key)

    @model_validator(mode="after")
    def _check_prefix(self) -> Self:
        if self.models is None and self.prefix == "":
            raise ValueError("prefix is empty, and models is not set. Set models or a prefix.")
        return self

    @property
    def prefix_of_ids(self) -> str:
        if self.prefix is not None:
            return self.prefix
        return "" if self.models is not None else f"{self.name}/"


class UpstreamsSettings(BaseModel):
    """Upstreams and aliases"""

    model_config = ConfigDict(use_attribute_docstrings=True)

    upstreams: Annotated[list[UpstreamSettings], NoDecode] = []
    """Other servers whose models this server offers, as a JSON list: [providers.md](providers.md#upstreams)."""
    aliases: Annotated[dict[str, str], NoDecode] = {}
    """A JSON object: other model names, or patterns with `*`, and the model id for each. The first match counts. Names
    of models take precedence."""
    fallbacks: Annotated[dict[str, list[str]], NoDecode] = {}
    """A JSON object: a model id and the models to try in order while it cannot be loaded or its queue is full."""

    @field_validator("upstreams", "fallbacks", "aliases", mode="before")
    @classmethod
    def _read_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("upstreams")
    @classmethod
    def _check_names(cls, upstreams: list[UpstreamSettings]) -> list[UpstreamSettings]:
        names = [upstream.name for upstream in upstreams]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two upstreams have the name {twice!r}. Rename one.")
        return upstreams
