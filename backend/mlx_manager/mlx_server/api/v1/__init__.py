"""The endpoints of OpenAI and Anthropic."""

from fastapi import APIRouter

from mlx_manager.mlx_server.api.v1 import chat, completions, messages, models, responses

v1_router = APIRouter(prefix="/v1")
for _module in (chat, completions, messages, models, responses):
    v1_router.include_router(_module.router)

__all__ = ["v1_router"]
