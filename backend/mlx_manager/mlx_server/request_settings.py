"""The settings of how requests are served. Knows nothing of how they are."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class RequestSettings(BaseModel):
    """How requests are served"""

    model_config = ConfigDict(use_attribute_docstrings=True)

    default_max_tokens: int = Field(default=4096, ge=1, le=10**9)
    """Most tokens of a chat answer when neither the request nor the model's generation_config says."""
    max_queue: int = Field(default=256, ge=0, le=10**9)
    """Generations of one model that may wait, beyond the 64 that run. The server answers the next with 429."""
    request_timeout_seconds: float = Field(default=600, ge=0, le=1e9, allow_inf_nan=False)
    """Longest time that a request may take; `0` for no limit."""
    inter_token_latency_ms: int = Field(default=100, ge=10, le=10**9)
    """Target for the longest pause in running streams while a long prompt is read. More reads the prompt faster."""
    tool_prompt: bool = True
    """Whether a prompt shows tools to a model whose chat template does not. When off, such a model refuses `tools`."""
    hoist_system_messages: bool = False
    """Whether late system messages that a chat template does not accept move to the beginning, which empties the prefix
    cache for that chat. When off, each becomes a marked block of a user message."""
    reject_unknown_fields: bool = False
    """Whether to refuse request fields that the server does not know. When off, it logs each name once."""
    validation_error_status: Annotated[Literal[422, 400], BeforeValidator(int)] = 422
    """Status of a body that breaks the schema; `400` is what api.openai.com answers."""
    response_store_mb: float = Field(default=64, ge=0, le=1e6, allow_inf_nan=False)
    """MB for stored responses of `/v1/responses`, which later requests can fetch or continue; `0` stores none."""
    response_ttl_seconds: float = Field(default=3600, gt=0, le=1e9, allow_inf_nan=False)
    """How long such a response is stored."""
