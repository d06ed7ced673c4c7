"""The settings of requests. Does not know how the server applies them."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class RequestSettings(BaseModel):
    """Requests"""

    model_config = ConfigDict(use_attribute_docstrings=True)

    default_max_tokens: int = Field(default=4096, ge=1, le=10**9)
    """Longest chat answer in tokens when neither the request nor the model's generation_config sets a limit."""
    max_queue: int = Field(default=256, ge=0, le=10**9)
    """Generations of one model that may wait, besides the 64 that run. Beyond that the server answers 429."""
    request_timeout_seconds: float = Field(default=600, ge=0, le=1e9, allow_inf_nan=False)
    """Longest duration of a request; `0` for no limit."""
    inter_token_latency_ms: int = Field(default=100, ge=10, le=10**9)
    """Target for the longest pause in running streams during a long prefill. Larger values prefill faster."""
    tool_prompt: bool = True
    """Whether to describe tools in the prompt if the model's chat template does not. When off, `tools` are an error for
    such a model."""
    hoist_system_messages: bool = False
    """Whether to move late system messages to the beginning if the chat template does not accept them, which makes the
    prefix cache useless for that chat. When off, each becomes a marked block of a user message."""
    reject_unknown_fields: bool = False
    """Whether unknown request fields are an error. When off, the server logs each name once."""
    validation_error_status: Annotated[Literal[422, 400], BeforeValidator(int)] = 422
    """Status for a body that violates the schema; api.openai.com answers `400`."""
    response_store_mb: float = Field(default=64, ge=0, le=1e6, allow_inf_nan=False)
    """MB for stored responses of `/v1/responses`, which later requests can fetch or continue; `0` stores nothing."""
    response_ttl_seconds: float = Field(default=3600, gt=0, le=1e9, allow_inf_nan=False)
    """How long the server stores such a response."""
