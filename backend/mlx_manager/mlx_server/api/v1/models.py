"""GET /v1/models and /v1/models/{id}: the loaded and the loadable models."""

import asyncio
from dataclasses import asdict, replace

from fastapi import APIRouter

from mlx_manager.mlx_server.api.dependencies import ServerState, State, require
from mlx_manager.mlx_server.models.facts import Capabilities, read_facts
from mlx_manager.mlx_server.models.loading import LoadedModel
from mlx_manager.mlx_server.protocols.codex import codex_model
from mlx_manager.mlx_server.protocols.models import capabilities, model_info
from mlx_manager.mlx_server.schemas.models import ModelInfo, ModelListResponse
from mlx_manager.mlx_server.services.backends import LocalModel, UpstreamModel

router = APIRouter(tags=["models"])


@router.get("/models")
async def list_models(state: State) -> ModelListResponse:
    """The loaded models, then all others that a request may load."""
    server = require(state)
    await asyncio.to_thread(server.pool.catalog.refresh)
    backends = list(server.inference.backends)
    models = await asyncio.to_thread(lambda: [_describe(server, model) for model in backends])
    models.sort(key=lambda model: not model.loaded)
    first_id, last_id = (models[0].id, models[-1].id) if models else (None, None)
    chats = (model for model in models if model.capabilities is None or model.capabilities.chat)
    for_codex = [codex_model(model, priority) for priority, model in enumerate(chats)]
    return ModelListResponse(data=models, models=for_codex, first_id=first_id, last_id=last_id)


@router.get("/models/{model_id:path}")
async def retrieve_model(model_id: str, state: State) -> ModelInfo:
    """The model that answers requests for the id."""
    server = require(state)
    model = await server.inference.backends.resolve(model_id)
    if isinstance(model, UpstreamModel):
        await model.server.own_id(model.id)  # its list may not be fetched yet
    return await asyncio.to_thread(_describe, server, model)


def _describe(server: ServerState, model: LocalModel | UpstreamModel) -> ModelInfo:
    """Reads files, so it runs in a thread."""
    if isinstance(model, UpstreamModel):
        return model_info(model.id, server.started_at, owned_by=model.server.name)
    known, facts = read_facts(model.entry), dict[str, object]()
    if known is not None:
        can = _served(server, model, known.capabilities)
        facts = asdict(known) | {"capabilities": capabilities(**asdict(can))}
    loaded, entry = server.pool.is_loaded(model.id), model.entry
    return model_info(model.id, server.started_at, loaded=loaded, aliases=entry.aliases, kind=entry.kind, **facts)


def _served(server: ServerState, model: LocalModel, by_files: Capabilities) -> Capabilities:
    """The capabilities by the model's files, corrected by the template of a loaded model."""
    loaded = server.pool.loaded(model.id)
    if by_files.tools and isinstance(loaded, LoadedModel):
        by_files = replace(by_files, tools="native" if loaded.language.traits.native_tools else "prompted")
    return by_files.with_tool_prompt(model.rules.tool_prompt)
