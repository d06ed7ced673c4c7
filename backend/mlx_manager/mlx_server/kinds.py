"""The kinds of model, and the endpoints of each kind. Imports no other module."""

from typing import Literal

ModelKind = Literal["generate", "embed", "rerank"]

ENDPOINTS: dict[ModelKind, str] = {
    "generate": "an endpoint that generates text, such as POST /v1/chat/completions",
    "embed": "POST /v1/embeddings",
    "rerank": "POST /v1/rerank",
}
"""The endpoint of each kind, for error messages."""
