"""Requests for embeddings and rankings as the services see them, and what they answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.types import CHARACTERS_PER_TOKEN

WHOLE_MODEL = -1
"""As a limit of tokens: as many as the model reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """`inputs` are texts or token ids. Longer ones than `truncate_tokens` are cut; None refuses what is too long."""

    id: str
    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    is_list: bool
    """Whether a list of them was sent: errors name the places in it."""
    as_base64: bool = False
    dimensions: int | None = None
    truncate_tokens: int | None = None
    prompt_name: str | None = None
    """One of the model's own prompts, which goes before each text."""
    keep_alive_seconds: float | None = None
    record: GenerationRecord = field(default_factory=GenerationRecord, compare=False, repr=False)

    @property
    def text_length(self) -> int:
        """Characters, and for each token id as many as a token has."""
        return sum(len(one) if isinstance(one, str) else len(one) * CHARACTERS_PER_TOKEN for one in self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """`shown` are the documents as they were sent, for an answer that gives them back."""

    id: str
    model: str
    query: str
    documents: tuple[str, ...]
    shown: tuple[Mapping[str, object], ...] | None = None
    top_n: int | None = None
    truncate_tokens: int | None = None
    document_tokens: int | None = None
    """To which each document is cut first."""
    instruction: str | None = None
    keep_alive_seconds: float | None = None
    record: GenerationRecord = field(default_factory=GenerationRecord, compare=False, repr=False)

    @property
    def text_length(self) -> int:
        return len(self.query) + sum(map(len, self.documents))


@dataclass(frozen=True, slots=True)
class Embeddings:
    """`vectors` are those of the inputs, one behind the other, as float32."""

    vectors: bytes
    dimensions: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """One score between 0 and 1 for each document, in their order."""

    scores: tuple[float, ...]
    prompt_tokens: int
