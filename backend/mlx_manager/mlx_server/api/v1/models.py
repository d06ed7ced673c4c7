"""GET /v1/models and /v1/models/{id}: what is loaded and what can be."""

import asyncio
from dataclasses import asdict, replace

from fastapi import APIRouter

from mlx_manager.mlx_server.api.dependencies import ServerState, State, require
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.facts import Capabilities, read_facts
from mlx_manager.mlx_server.models.loading import LoadedModel
from mlx_manager.mlx_server.protocols.models import capabilities, model_info
from mlx_manager.mlx_server.schemas.models import ModelInfo, ModelListResponse

router = APIRouter(tags=["models"])


@router.get("/models")
async def list_models(state: State) -> ModelListResponse:
    """The loaded models first, then all others that a request may have loaded."""
    server = require(state)
    local = await asyncio.to_thread(_describe_all, server)
    models = [*local, *_of_upstreams(server, {model.id for model in local})]
    models.sort(key=lambda model: not model.loaded)
    first_id, last_id = (models[0].id, models[-1].id) if models else (None, None)
    return ModelListResponse(data=models, first_id=first_id, last_id=last_id)


@router.get("/models/{model_id:path}")
async def retrieve_model(model_id: str, state: State) -> ModelInfo:
    server = require(state)
    model_id = server.inference.routing.model_id(model_id)
    if not server.pool.catalog.knows(model_id):  # as the routing of a request goes
        found = next((model for model in _of_upstreams(server, set()) if model.id == model_id), None)
        if found is not None:
            return found
    return await asyncio.to_thread(_describe, server, await server.pool.find(model_id))


def _of_upstreams(server: ServerState, local_ids: set[str]) -> list[ModelInfo]:
    """But for those whose ids are this machine's models'."""
    return [
        model_info(model.id, server.started_at, owned_by=model.upstream)
        for model in server.upstreams.models()
        if model.id not in local_ids
    ]


def _describe_all(server: ServerState) -> list[ModelInfo]:
    """Reads files: for a thread."""
    server.pool.catalog.refresh()
    return [_describe(server, entry) for entry in server.pool.catalog]


def _describe(server: ServerState, entry: ModelEntry) -> ModelInfo:
    known = read_facts(entry)
    facts: dict[str, object] = {}
    if known is not None:
        can = _served(server, entry, known.capabilities)
        facts = asdict(known) | {"capabilities": capabilities(**asdict(can))}
    loaded = server.pool.is_loaded(entry.id)
    return model_info(entry.id, server.started_at, loaded=loaded, aliases=entry.aliases, kind=entry.kind, **facts)


def _served(server: ServerState, entry: ModelEntry, told: Capabilities) -> Capabilities:
    """What a loaded model's template was found to accept goes before what its files tell."""
    model = server.pool.loaded(entry.id)
    if told.tools and isinstance(model, LoadedModel):
        told = replace(told, tools="native" if model.language.traits.native_tools else "prompted")
    return told.with_tool_prompt(server.inference.prompt_rules.tool_prompt)
