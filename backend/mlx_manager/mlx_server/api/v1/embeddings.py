"""POST /v1/embeddings, /v1/rerank and /rerank."""

import asyncio

import msgspec
from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import State, require
from mlx_manager.mlx_server.api.exchange import STATUS_CLIENT_CLOSED_REQUEST, exchange_of
from mlx_manager.mlx_server.api.reading import JsonRoute, converted
from mlx_manager.mlx_server.api.respond import ClientDisconnected, unless_disconnected
from mlx_manager.mlx_server.embedding_types import EmbeddingRequest, RerankRequest
from mlx_manager.mlx_server.protocols import embeddings as protocol
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.schemas import embeddings as wire

router = APIRouter(tags=["embeddings"], route_class=JsonRoute)
LARGE_BYTES = 2**16
"""Vectors above this size are encoded in a thread."""


@router.post("/v1/embeddings", response_model=wire.EmbeddingResponse)
async def create_embeddings(body: wire.EmbeddingRequest, request: Request, state: State) -> Response:
    server = require(state)
    asked = await converted(request, protocol.embedding_request, body, server.settings.reject_unknown_fields)
    _note(request, asked)
    try:
        embeddings = await unless_disconnected(request, server.embedding.embed(asked))
    except ClientDisconnected:
        return Response(status_code=STATUS_CLIENT_CLOSED_REQUEST)
    if len(embeddings.vectors) > LARGE_BYTES:
        return await asyncio.to_thread(lambda: _json(protocol.embedding_response(asked, embeddings)))
    return _json(protocol.embedding_response(asked, embeddings))


@router.post("/v1/rerank", response_model=wire.RerankResponse)
@router.post("/rerank", response_model=wire.RerankResponse)
async def rerank(body: wire.RerankRequest, request: Request, state: State) -> Response:
    server = require(state)
    asked = await converted(request, protocol.rerank_request, body, server.settings.reject_unknown_fields)
    _note(request, asked)
    try:
        ranking = await unless_disconnected(request, server.embedding.rerank(asked))
    except ClientDisconnected:
        return Response(status_code=STATUS_CLIENT_CLOSED_REQUEST)
    return _json(protocol.rerank_response(asked, ranking))


def _note(request: Request, asked: EmbeddingRequest | RerankRequest) -> None:
    exchange = exchange_of(request)
    exchange.generation, exchange.response_id = asked.record, asked.id


def _json(body: JsonObject) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
