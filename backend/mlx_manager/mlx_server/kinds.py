"""The kinds of model that this server runs, and the endpoints that each kind answers. Imports nothing."""

from typing import Literal

ModelKind = Literal["generate", "embed", "rerank"]

ENDPOINTS: dict[ModelKind, str] = {
    "generate": "an endpoint that generates text, such as POST /v1/chat/completions",
    "embed": "POST /v1/embeddings",
    "rerank": "POST /v1/rerank",
}
"""Where requests for a model of the kind go, for error messages."""
