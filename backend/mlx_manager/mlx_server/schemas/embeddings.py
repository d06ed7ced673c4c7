"""The wire schemas of embeddings (OpenAI) and rerank (Jina and Cohere). Shapes only."""

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from mlx_manager.mlx_server.schemas.openai import Integer, KeepAlive, Switch, Text, TokenId, WireBody


def _kind_of_input(given: object) -> str:
    """The shape of the input, from its first element: a long list is validated only once."""
    if not isinstance(given, list) or not given:
        return "str" if isinstance(given, str) else "list[str]"
    kinds = {int: "list[int]", list: "list[list[int]]"}
    return kinds.get(type(given[0]), "list[str]")


Input = Annotated[
    Annotated[Text, Tag("str")]
    | Annotated[list[Text], Field(fail_fast=True, min_length=1), Tag("list[str]")]
    | Annotated[list[TokenId], Field(fail_fast=True), Tag("list[int]")]
    | Annotated[list[Annotated[list[TokenId], Field(fail_fast=True)]], Field(fail_fast=True), Tag("list[list[int]]")],
    Discriminator(_kind_of_input),
]


class EmbeddingRequest(WireBody):
    model: str = Field(min_length=1)
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Integer | None = Field(default=None, ge=1)
    truncate_prompt_tokens: Integer | None = Field(default=None, ge=-1)
    prompt_name: Text | None = None
    keep_alive: KeepAlive | None = None


class Document(WireBody):
    text: Text


class RerankRequest(WireBody):
    model: str = Field(min_length=1)
    query: Text
    documents: Annotated[
        list[
            Annotated[
                Annotated[Text, Tag("str")] | Annotated[Document, Tag("dict")],
                Discriminator(lambda value: "str" if isinstance(value, str) else "dict"),
            ]
        ],
        Field(fail_fast=True, min_length=1),
    ]
    top_n: Integer | None = Field(default=None, ge=1)
    return_documents: Switch = False
    truncate_prompt_tokens: Integer | None = Field(default=None, ge=-1)
    max_tokens_per_doc: Integer | None = Field(default=None, ge=1)
    instruction: Text | None = None
    keep_alive: KeepAlive | None = None


class EncodingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingResponse(BaseModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EncodingUsage


class RankedDocument(BaseModel):
    index: int
    relevance_score: float
    document: dict[str, object] | None = None


class RerankResponse(BaseModel):
    id: str
    object: Literal["list"]
    model: str
    results: list[RankedDocument]
    usage: EncodingUsage
