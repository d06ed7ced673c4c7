"""Which kind of model a folder holds: found in the files that transformers and sentence-transformers write."""

import functools
import re
from pathlib import Path

from mlx_manager.mlx_server.errors import InvalidRequest
from mlx_manager.mlx_server.kinds import ENDPOINTS, ModelKind
from mlx_manager.mlx_server.models.defaults import changed_at, read_json

_FILES = ("config.json", "config_sentence_transformers.json", "modules.json")

_LIBRARY_TYPES: dict[str, ModelKind] = {"SentenceTransformer": "embed", "CrossEncoder": "rerank"}
"""`model_type` in config_sentence_transformers.json."""
_EMBEDDING_NAME = re.compile(r"qwen3-embedding|e5-mistral", re.IGNORECASE)
"""Decoders that embed, and whose config.json is a language model's."""


def kind_of(folder: Path, name: str = "") -> ModelKind:
    """A model that nothing marks as another generates. Reads files where they have changed.

    The `name` tells of models whose conversion has dropped the files of sentence-transformers.
    """
    return _kind_of(folder, name, tuple(changed_at(folder / file) for file in _FILES))


@functools.lru_cache(maxsize=1000)
def _kind_of(folder: Path, name: str, times: tuple[int, ...]) -> ModelKind:
    library_type = read_json(folder / "config_sentence_transformers.json").get("model_type")
    architectures = read_json(folder / "config.json").get("architectures")
    names = [str(one) for one in (architectures if isinstance(architectures, list) else [architectures])]
    is_generator = any(one.endswith("ForCausalLM") for one in names)
    if library_type == "CrossEncoder" and is_generator:  # it writes its verdict, as Qwen3-Reranker does
        return "generate"
    if isinstance(library_type, str) and library_type in _LIBRARY_TYPES:
        return _LIBRARY_TYPES[library_type]
    if (folder / "modules.json").is_file():  # sentence-transformers writes it for models that embed
        return "embed"
    if is_generator and _EMBEDDING_NAME.search(name):
        return "embed"
    return next((kind for name in names if (kind := _kind_of_architecture(name)) is not None), "generate")


def check_kind(model_id: str, kind: ModelKind, wanted: ModelKind) -> None:
    """Raises InvalidRequest for a request that a model of the kind does not answer."""
    if kind != wanted:
        raise InvalidRequest(
            f"Model {model_id!r} is of kind {kind}, and this endpoint needs one of kind {wanted}. Send the request to "
            f"{ENDPOINTS[kind]}, or name another model.",
            param="model",
        )


def _kind_of_architecture(name: str) -> ModelKind | None:
    """`BertModel` is a bare encoder, `GPT2LMHeadModel` and `ChatGLMModel` are language models."""
    if name.endswith("ForSequenceClassification"):
        return "rerank"
    if name.endswith("ForMaskedLM") or re.search(r"(?<!Head)(?<!Chat)(?<!GLM)Model$", name):
        return "embed"
    return None
