"""The internal requests and results of embeddings and rankings. Knows no wire format."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.types import CHARACTERS_PER_TOKEN

WHOLE_MODEL = -1
"""A token limit equal to the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """`inputs` are texts or token ids, truncated to `truncate_tokens`. With None, a longer input is an error."""

    id: str
    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    is_list: bool
    """Whether the client sent a list, so that errors name an index."""
    as_base64: bool = False
    dimensions: int | None = None
    truncate_tokens: int | None = None
    prompt_name: str | None = None
    """The name of one of the model's prompts, which is prepended to each text."""
    keep_alive_seconds: float | None = None
    record: GenerationRecord = field(default_factory=GenerationRecord, compare=False, repr=False)

    @property
    def text_length(self) -> int:
        """Characters; a token id counts as CHARACTERS_PER_TOKEN."""
        return sum(len(one) if isinstance(one, str) else len(one) * CHARACTERS_PER_TOKEN for one in self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """`shown` are the documents as the client sent them, for an answer that returns them."""

    id: str
    model: str
    query: str
    documents: tuple[str, ...]
    shown: tuple[Mapping[str, object], ...] | None = None
    top_n: int | None = None
    truncate_tokens: int | None = None
    document_tokens: int | None = None
    """Each document is truncated to this limit first."""
    instruction: str | None = None
    keep_alive_seconds: float | None = None
    record: GenerationRecord = field(default_factory=GenerationRecord, compare=False, repr=False)

    @property
    def text_length(self) -> int:
        return len(self.query) + sum(map(len, self.documents))


@dataclass(frozen=True, slots=True)
class Embeddings:
    """`vectors` are the concatenated float32 vectors of the inputs."""

    vectors: bytes
    dimensions: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """One score between 0 and 1 per document, in the order of the documents."""

    scores: tuple[float, ...]
    prompt_tokens: int
