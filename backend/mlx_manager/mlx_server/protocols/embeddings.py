"""Embeddings and rerank: converts bodies to requests, and results to responses. Pure."""

import base64
import uuid
from array import array
from collections.abc import Mapping

from mlx_manager.mlx_server.embedding_types import EmbeddingRequest, Embeddings, Ranking, RerankRequest
from mlx_manager.mlx_server.errors import InvalidRequest
from mlx_manager.mlx_server.protocols.openai import OpenAIEndpoint
from mlx_manager.mlx_server.protocols.parameters import IGNORED, ParameterTable, check_unused
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.schemas import embeddings as wire

MAX_INPUTS = 2048
"""The limit of api.openai.com."""
_REFUSED: Mapping[str, tuple[object, ...]] = {
    "add_special_tokens": (True,),
    "embedding_type": ("float",),
    "embedding_types": (["float"],),
    "input_type": (),
    "late_chunking": (False,),
    "max_chunks_per_doc": (),
    "normalize": (True,),
    "normalized": (True,),
    "output_dimension": (),
    "output_dtype": ("float",),
    "rank_fields": (["text"],),
    "raw_scores": (False,),
    "task": (),
    "truncate": (False, "NONE"),
    "truncation": (False,),
}
_PARAMETERS = ParameterTable(IGNORED, _REFUSED)


class EmbeddingEndpoints(OpenAIEndpoint):
    paths = ("/v1/embeddings", "/v1/rerank", "/rerank")


def embedding_request(body: wire.EmbeddingRequest, reject_unknown: bool) -> EmbeddingRequest:
    """Raises InvalidRequest and UnsupportedParameter, which name the field."""
    check_unused(body.model_extra, reject_unknown, table=_PARAMETERS)
    inputs = _inputs(body.input)
    is_list = isinstance(body.input, list) and not isinstance(body.input[0], int)
    if len(inputs) > MAX_INPUTS:
        raise _too_many("input", len(inputs))
    empty = next((index for index, one in enumerate(inputs) if not one), None)
    if empty is not None:
        name = f"input[{empty}]" if is_list else "input"
        raise InvalidRequest(f"{name} is empty. Send at least one character or token, or remove it.", param=name)
    if body.prompt_name is not None and not isinstance(inputs[0], str):
        raise InvalidRequest(
            "prompt_name requires texts, but input contains token ids. Send texts, or remove prompt_name.",
            param="prompt_name",
        )
    return EmbeddingRequest(
        id=f"embd-{uuid.uuid4().hex}",
        model=body.model,
        inputs=inputs,
        is_list=is_list,
        as_base64=body.encoding_format == "base64",
        dimensions=body.dimensions,
        truncate_tokens=_truncation(body.truncate_prompt_tokens),
        prompt_name=body.prompt_name,
        keep_alive_seconds=body.keep_alive,
    )


def rerank_request(body: wire.RerankRequest, reject_unknown: bool) -> RerankRequest:
    """Raises InvalidRequest and UnsupportedParameter, which name the field."""
    check_unused(body.model_extra, reject_unknown, table=_PARAMETERS)
    if not body.query:
        raise InvalidRequest("query is empty. Send the text to rank the documents by.", param="query")
    if len(body.documents) > MAX_INPUTS:
        raise _too_many("documents", len(body.documents))
    shown = [{"text": one} if isinstance(one, str) else one.model_dump() for one in body.documents]
    return RerankRequest(
        id=f"rerank-{uuid.uuid4().hex}",
        model=body.model,
        query=body.query,
        documents=tuple(one if isinstance(one, str) else one.text for one in body.documents),
        shown=tuple(shown) if body.return_documents else None,
        top_n=body.top_n,
        truncate_tokens=_truncation(body.truncate_prompt_tokens),
        document_tokens=body.max_tokens_per_doc,
        instruction=body.instruction,
        keep_alive_seconds=body.keep_alive,
    )


def embedding_response(request: EmbeddingRequest, embeddings: Embeddings) -> JsonObject:
    size = 4 * embeddings.dimensions
    rows = [embeddings.vectors[start : start + size] for start in range(0, len(embeddings.vectors), size)]
    written = [base64.b64encode(row).decode() if request.as_base64 else array("f", row).tolist() for row in rows]
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(written)],
        "model": request.model,
        "usage": _usage(embeddings.prompt_tokens),
    }


def rerank_response(request: RerankRequest, ranking: Ranking) -> JsonObject:
    """Best documents first; equal scores keep the order of the request."""
    best = sorted(range(len(ranking.scores)), key=lambda index: -ranking.scores[index])[: request.top_n]
    results: list[JsonObject] = [{"index": index, "relevance_score": ranking.scores[index]} for index in best]
    if request.shown is not None:
        results = [{**result, "document": request.shown[index]} for result, index in zip(results, best, strict=True)]
    return {
        "id": request.id,
        "object": "list",
        "model": request.model,
        "results": results,
        "usage": _usage(ranking.prompt_tokens),
    }


def _inputs(given: str | list[str] | list[int] | list[list[int]]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(given, str):
        return (given,)
    tokens = tuple(one for one in given if isinstance(one, int))
    if len(tokens) == len(given):
        return (tokens,)
    return tuple(one if isinstance(one, str) else tuple(one) for one in given if not isinstance(one, int))


def _too_many(field: str, count: int) -> InvalidRequest:
    return InvalidRequest(
        f"{field} has {count} entries, but the limit is {MAX_INPUTS} for one request. Send several requests.",
        param=field,
    )


def _truncation(tokens: int | None) -> int | None:
    if tokens == 0:
        raise InvalidRequest(
            "truncate_prompt_tokens is 0, which would remove the whole input. Send -1 for the model's limit.",
            param="truncate_prompt_tokens",
        )
    return tokens


def _usage(tokens: int) -> JsonObject:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
