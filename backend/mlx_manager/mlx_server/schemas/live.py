"""The schemas of the page's own endpoints: the frames of `GET /admin/live`, and `GET /ui/setups`. Shapes only.

Sizes are bytes, times Unix seconds, durations seconds.
"""

from pydantic import BaseModel, ConfigDict

from mlx_manager.mlx_server.schemas.admin import LoadProgress


class LiveModel(BaseModel):
    """A model that is loaded or waited for. Counts of the prefix cache start with its worker."""

    model_config = ConfigDict(from_attributes=True, protected_namespaces=())

    model_id: str
    running_sequences: int
    waiting_sequences: int
    tokens_per_second: float
    weights_bytes: int
    kv_cache_bytes: int
    prefix_cache_bytes: int
    mlx_cache_bytes: int
    prefix_cache_hits: int
    prefix_cache_tokens: int
    prefix_cache_evictions: int


class LiveLoad(LoadProgress):
    """A model that is being downloaded or loaded."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str


class LiveRequest(BaseModel):
    """One completed request. Fields that it did not reach are null."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    """Counts all requests since the start."""
    ended_at: float
    path: str
    status: int | None
    seconds: float
    model: str | None = None
    key: str | None = None
    request_id: str
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    time_to_first_token: float | None = None
    queue_seconds: float | None = None
    load_seconds: float | None = None
    tokens_per_second: float | None = None
    finish_reason: str | None = None
    cache_miss: str | None = None
    """Why the prompt, or its end, was not in the prefix cache."""
    missed_tokens: int = 0
    trace_url: str | None = None


class LiveFrame(BaseModel):
    """`requests` are those that ended since the last frame, oldest first; in the first frame the last 200."""

    time: float
    draining: bool
    limit_bytes: int
    used_bytes: int
    models: list[LiveModel]
    loads: list[LiveLoad]
    requests: list[LiveRequest]
    project_url: str | None
    """The LogFire project that receives the traces."""


class SetupStep(BaseModel):
    """`text` is to be copied; `title` says where it goes."""

    title: str
    text: str


class ClientSetup(BaseModel):
    name: str
    install: str
    steps: list[SetupStep]
