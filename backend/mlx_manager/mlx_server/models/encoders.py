"""Loads embedding models and rerankers: weights in a worker process, the tokenizer in this one."""

from dataclasses import dataclass
from typing import TypeVar

from mlx_manager.mlx_server.engine.embedding.recipe import Recipe, read_recipe
from mlx_manager.mlx_server.engine.encoder_client import EncoderClient
from mlx_manager.mlx_server.models.conversion import tokenizer_folder
from mlx_manager.mlx_server.models.resident import Loading, Resident
from mlx_manager.mlx_server.models.text_encoding import TextEncoder


@dataclass(slots=True, kw_only=True)
class EncoderModel(Resident):
    """`max_tokens` is the limit for one input, special tokens included."""

    engine: EncoderClient
    recipe: Recipe
    texts: TextEncoder
    max_tokens: int


@dataclass(slots=True, kw_only=True)
class Embedder(EncoderModel):
    kind = "embed"


@dataclass(slots=True, kw_only=True)
class Reranker(EncoderModel):
    kind = "rerank"


M = TypeVar("M", bound=EncoderModel)


async def load_embedder(load: Loading) -> Embedder:
    return await _load(Embedder, load)


async def load_reranker(load: Loading) -> Reranker:
    return await _load(Reranker, load)


async def _load(model_class: type[M], load: Loading) -> M:
    def read() -> tuple[Recipe, TextEncoder]:
        recipe = read_recipe(load.folder, model_class.kind)
        files = tokenizer_folder(load.folder, trust_remote_code=load.entry.trust_remote_code)
        return recipe, TextEncoder(files, lower_case=recipe.lower_case)

    engine, (recipe, texts) = await load.start(EncoderClient, read)
    settings = load.entry.settings
    own = settings.context_length if settings is not None else None
    return model_class(
        model_id=load.entry.id,
        engine=engine,
        recipe=recipe,
        texts=texts,
        max_tokens=min(own, recipe.max_tokens) if own is not None else recipe.max_tokens,
        weights_bytes=engine.stats.active_bytes,
        keep_alive_seconds=load.keep_alive_seconds,
    )
