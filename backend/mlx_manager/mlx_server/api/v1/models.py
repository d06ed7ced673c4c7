"""GET /v1/models and /v1/models/{id}: what is loaded and what can be."""

import asyncio
from dataclasses import asdict, replace

from fastapi import APIRouter

from mlx_manager.mlx_server.api.dependencies import ServerState, State, require
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.facts import Capabilities, read_facts
from mlx_manager.mlx_server.schemas.openai import ModelInfo, ModelListResponse

router = APIRouter(tags=["models"])


@router.get("/models")
async def list_models(state: State) -> ModelListResponse:
    """The loaded models first, then all others that a request may have loaded."""
    server = require(state)
    local = await asyncio.to_thread(_describe_all, server)
    models = [*local, *_of_upstreams(server, {model.id for model in local})]
    return ModelListResponse(data=sorted(models, key=lambda model: not model.loaded))


@router.get("/models/{model_id:path}")
async def retrieve_model(model_id: str, state: State) -> ModelInfo:
    server = require(state)
    if not server.pool.catalog.knows(model_id):  # as the routing of a request goes
        found = next((model for model in _of_upstreams(server, set()) if model.id == model_id), None)
        if found is not None:
            return found
    return await asyncio.to_thread(_describe, server, await server.pool.find(model_id))


def _of_upstreams(server: ServerState, local_ids: set[str]) -> list[ModelInfo]:
    """But for those whose ids are this machine's models'."""
    return [
        ModelInfo(id=model.id, created=server.started_at, owned_by=model.upstream)
        for model in server.upstreams.models()
        if model.id not in local_ids
    ]


def _describe_all(server: ServerState) -> list[ModelInfo]:
    """Reads files: for a thread."""
    server.pool.catalog.refresh()
    return [_describe(server, entry) for entry in server.pool.catalog]


def _describe(server: ServerState, entry: ModelEntry) -> ModelInfo:
    facts = read_facts(entry)
    if facts is not None:
        facts = replace(facts, capabilities=_served(server, entry, facts.capabilities))
    return ModelInfo(
        id=entry.id,
        created=server.started_at,
        loaded=server.pool.is_loaded(entry.id),
        aliases=entry.aliases,
        **(asdict(facts) if facts is not None else {}),
    )


def _served(server: ServerState, entry: ModelEntry, told: Capabilities) -> Capabilities:
    """What a loaded model's template was found to accept goes before what its files tell."""
    model = server.pool.loaded(entry.id)
    if told.tools and model is not None:
        told = replace(told, tools="native" if model.language.traits.native_tools else "prompted")
    return told.with_tool_prompt(server.inference.prompt_rules.tool_prompt)
