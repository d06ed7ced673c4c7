"""Detects a model's kind from the files that transformers and sentence-transformers write."""

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
"""Embedding models whose config.json describes a language model."""


def kind_of(folder: Path, name: str = "") -> ModelKind:
    """The model's kind; "generate" where no file says otherwise. Reads files that have changed.

    The `name` identifies embedding models whose conversion dropped the files of sentence-transformers.
    """
    return _kind_of(folder, name, tuple(changed_at(folder / file) for file in _FILES))


@functools.lru_cache(maxsize=1000)
def _kind_of(folder: Path, name: str, times: tuple[int, ...]) -> ModelKind:
    library_type = read_json(folder / "config_sentence_transformers.json").get("model_type")
    architectures = read_json(folder / "config.json").get("architectures")
    names = [str(one) for one in (architectures if isinstance(architectures, list) else [architectures])]
    is_generator = any(one.endswith("ForCausalLM") for one in names)
    if library_type == "CrossEncoder" and is_generator:  # Qwen3-Reranker writes its score as text
        return "generate"
    if isinstance(library_type, str) and library_type in _LIBRARY_TYPES:
        return _LIBRARY_TYPES[library_type]
    if (folder / "modules.json").is_file():  # sentence-transformers writes it for models that embed
        return "embed"
    if is_generator and _EMBEDDING_NAME.search(name):
        return "embed"
    return next((kind for name in names if (kind := _kind_of_architecture(name)) is not None), "generate")


def check_kind(model_id: str, kind: ModelKind, wanted: ModelKind) -> None:
    """Raises InvalidRequest if a model of this `kind` cannot serve a request for the `wanted` kind."""
    if kind != wanted:
        raise InvalidRequest(
            f"Model {model_id!r} is of kind {kind}, and this endpoint needs a model of kind {wanted}. Send the request "
            f"to {ENDPOINTS[kind]}, or choose another model.",
            param="model",
        )


def _kind_of_architecture(name: str) -> ModelKind | None:
    """`BertModel` is a bare encoder, `GPT2LMHeadModel` and `ChatGLMModel` are language models."""
    if name.endswith("ForSequenceClassification"):
        return "rerank"
    if name.endswith("ForMaskedLM") or re.search(r"(?<!Head)(?<!Chat)(?<!GLM)Model$", name):
        return "embed"
    return None
