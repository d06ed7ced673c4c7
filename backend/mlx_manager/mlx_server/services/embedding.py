"""Embeddings and rankings: leases the model, tokenises, and lets the worker encode. Knows no HTTP."""

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from mlx_manager.mlx_server.embedding_types import (
    WHOLE_MODEL,
    EmbeddingRequest,
    Embeddings,
    Ranking,
    RerankRequest,
)
from mlx_manager.mlx_server.errors import ContextLengthExceeded, InvalidRequest, NotReady
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.encoders import Embedder, EncoderModel, Reranker
from mlx_manager.mlx_server.protocols.sizes import too_long
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.services.backends import LocalModel
from mlx_manager.mlx_server.services.deadline import timed_out
from mlx_manager.mlx_server.services.embedding_tracing import traced
from mlx_manager.mlx_server.services.generative_rerank import is_generative_reranker, rerank_by_generation
from mlx_manager.mlx_server.services.inference import InferenceService
from mlx_manager.mlx_server.services.prompts import LONG_TEXT_CHARACTERS

T = TypeVar("T")


class EmbeddingService:
    """Serves the models of a pool, with the limits, the deadline and the model names of `inference`."""

    def __init__(self, inference: InferenceService) -> None:
        self._inference = inference
        self._pool = inference.backends.pool

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Raises InvalidRequest with the wrong input in `param`, and what a lease raises. Cancelled with its caller."""
        async with traced("embeddings", request.model, request.record):
            return await self._in_time(self._embed(request))

    async def rerank(self, request: RerankRequest) -> Ranking:
        """Raises and is cancelled like `embed`."""
        async with traced("rerank", request.model, request.record):
            return await self._in_time(self._rerank(request))

    async def _embed(self, request: EmbeddingRequest) -> Embeddings:
        entry = await self._local_model(request.model)
        self._check_length(request.text_length, "input")
        record, asked_at = request.record, time.time()
        async with self._pool.lease_as(Embedder, entry, 1, request.keep_alive_seconds) as model:
            record.note_lease(model.model_id, model.loaded_at, asked_at)
            dimensions = _dimensions(model, request)
            ids = await _off_loop(request.text_length, lambda: _tokens(model, request))
            record.prompt_tokens = sum(map(len, ids))
            vectors = await _recorded(record, model.engine.encode(ids, record, dimensions=dimensions))
        return Embeddings(vectors, dimensions, record.prompt_tokens)

    async def _rerank(self, request: RerankRequest) -> Ranking:
        entry = await self._local_model(request.model)
        self._check_length(request.text_length, "documents")
        if await asyncio.to_thread(is_generative_reranker, entry):
            return await rerank_by_generation(self._pool, entry, request)
        if request.instruction is not None:
            raise InvalidRequest(
                f"Model {entry.id!r} is a classifier and takes no instruction. Remove it.", param="instruction"
            )
        record, asked_at = request.record, time.time()
        async with self._pool.lease_as(Reranker, entry, 1, request.keep_alive_seconds) as model:
            record.note_lease(model.model_id, model.loaded_at, asked_at)
            ids, second_at = await _off_loop(request.text_length, lambda: _pairs(model, request))
            record.prompt_tokens = sum(map(len, ids))
            scores = await _recorded(record, model.engine.encode(ids, record, second_at=second_at))
        return Ranking(tuple(array("f", scores)), record.prompt_tokens)

    async def _local_model(self, name: str) -> ModelEntry:
        if self._pool.draining:
            raise NotReady("The server is shutting down. Retry later.")
        model = await self._inference.backends.resolve(name)
        if not isinstance(model, LocalModel):
            raise InvalidRequest(
                f"Model {model.id!r} is on an upstream. This server does not forward embeddings or rankings. Send the "
                "request to the upstream, or use a local model.",
                param="model",
            )
        return model.entry

    def _check_length(self, characters: int, field: str) -> None:
        limit = self._inference.backends.rules.max_characters
        if 0 < limit < characters:
            raise too_long(f"The field {field}", characters, limit, field)

    async def _in_time(self, work: Awaitable[T]) -> T:
        seconds = self._inference.timeout_seconds
        try:
            async with asyncio.timeout(seconds if seconds else None) as timer:
                return await work
        except TimeoutError as exc:
            if not timer.expired():
                raise
            raise timed_out(seconds) from exc


async def _off_loop(characters: int, tokenize: Callable[[], T]) -> T:
    """The result of `tokenize`, which runs in a thread for long texts: streams continue."""
    return await asyncio.to_thread(tokenize) if characters > LONG_TEXT_CHARACTERS else tokenize()


async def _recorded(record: GenerationRecord, work: Awaitable[bytes]) -> bytes:
    record.admitted = time.perf_counter()
    encoded = await work
    record.prefilled = time.perf_counter()
    return encoded


def _dimensions(model: Embedder, request: EmbeddingRequest) -> int:
    native = model.engine.facts.dimensions
    if request.dimensions is not None and request.dimensions > native:
        raise InvalidRequest(
            f"dimensions is {request.dimensions}, but the vectors of model {model.model_id!r} have {native}. Send at "
            f"most {native}, or remove dimensions.",
            param="dimensions",
        )
    return request.dimensions if request.dimensions is not None else native


def _tokens(model: Embedder, request: EmbeddingRequest) -> Sequence[Sequence[int]]:
    """The token ids of each input. Raises InvalidRequest for an input that is too long. Blocks."""
    limit = _limit(model, request.truncate_tokens)
    texts = [one for one in request.inputs if isinstance(one, str)]
    names = [f"input[{index}]" if request.is_list else "input" for index in range(len(request.inputs))]
    ids: Sequence[Sequence[int]]
    if texts:
        prompt = _prompt(model, request.prompt_name)
        ids = model.texts.encode([f"{prompt}{text}" for text in texts], limit)
    else:
        ids = [one[:limit] for one in request.inputs if not isinstance(one, str)]
        _check_ids(model, ids, names)
    _check_tokens(model, ids, names)
    return ids


def _pairs(model: Reranker, request: RerankRequest) -> tuple[list[list[int]], list[int]]:
    """The token ids of each pair of query and document. Blocks."""
    ids, second_at = model.texts.encode_pairs(
        request.query,
        request.documents,
        limit=_limit(model, request.truncate_tokens),
        document_limit=request.document_tokens,
    )
    _check_tokens(model, ids, [f"documents[{index}]" for index in range(len(ids))])
    return ids, second_at


def _limit(model: EncoderModel, asked: int | None) -> int | None:
    """Longer texts are truncated to so many tokens, or refused if None."""
    if asked is None or asked == WHOLE_MODEL:
        return asked and model.max_tokens
    if asked > model.max_tokens:
        raise InvalidRequest(
            f"truncate_prompt_tokens is {asked}, but model {model.model_id!r} reads {model.max_tokens} tokens. Send at "
            f"most {model.max_tokens}, or -1 for the model's limit.",
            param="truncate_prompt_tokens",
        )
    return asked


def _check_tokens(model: EncoderModel, ids: Sequence[Sequence[int]], names: list[str]) -> None:
    for one, name in zip(ids, names, strict=True):
        if not one:
            raise InvalidRequest(f"{name} has no tokens for model {model.model_id!r}. Remove it.", param=name)
        if len(one) > model.max_tokens:
            raise ContextLengthExceeded(
                f"{name} has {len(one)} tokens{' with the query' if name.startswith('documents') else ''}, but model "
                f"{model.model_id!r} reads {model.max_tokens}. Shorten it, or send truncate_prompt_tokens = -1.",
                param=name,
                tokens=len(one),
                limit=model.max_tokens,
            )


def _prompt(model: Embedder, name: str | None) -> str:
    prompts = model.recipe.prompts
    if name is None:
        return prompts.get(model.recipe.default_prompt or "", "")
    if name not in prompts:
        known = ", ".join(map(repr, prompts)) or "none"
        raise InvalidRequest(
            f"Model {model.model_id!r} has no prompt {name[:100]!r}. Use one of: {known}. Or remove prompt_name.",
            param="prompt_name",
        )
    return prompts[name]


def _check_ids(model: Embedder, ids: Sequence[Sequence[int]], names: list[str]) -> None:
    size = model.engine.facts.vocabulary_size
    for one, name in zip(ids, names, strict=True):
        unknown = next((token for token in one if not 0 <= token < size), None)
        if unknown is not None:
            raise InvalidRequest(
                f"{name} has the token id {unknown}, but the largest of model {model.model_id!r} is {size - 1}. Send "
                "texts, or ids of the model's own tokenizer. With LangChain's OpenAIEmbeddings, set "
                "check_embedding_ctx_length=False to send texts.",
                param=name,
            )
