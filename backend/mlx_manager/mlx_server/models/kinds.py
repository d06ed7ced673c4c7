"""Which kind of model a folder holds: found in the files that transformers and sentence-transformers write."""

from pathlib import Path

from mlx_manager.mlx_server.errors import InvalidRequest
from mlx_manager.mlx_server.kinds import ENDPOINTS, ModelKind
from mlx_manager.mlx_server.models.defaults import read_json

_LIBRARY_TYPES: dict[str, ModelKind] = {"SentenceTransformer": "embed", "CrossEncoder": "rerank"}
"""`model_type` in config_sentence_transformers.json."""


def kind_of(folder: Path) -> ModelKind:
    """A model that nothing marks as another generates. Reads files."""
    library_type = read_json(folder / "config_sentence_transformers.json").get("model_type")
    if isinstance(library_type, str) and library_type in _LIBRARY_TYPES:
        return _LIBRARY_TYPES[library_type]
    if (folder / "modules.json").is_file():  # sentence-transformers writes it for models that embed
        return "embed"
    architectures = read_json(folder / "config.json").get("architectures")
    names = architectures if isinstance(architectures, list) else [architectures]
    return next((kind for name in names if (kind := _kind_of_architecture(str(name))) is not None), "generate")


def check_kind(model_id: str, kind: ModelKind, wanted: ModelKind) -> None:
    """Raises InvalidRequest for a request that a model of the kind does not answer."""
    if kind != wanted:
        raise InvalidRequest(
            f"Model {model_id!r} is of kind {kind}, and this endpoint needs one of kind {wanted}. Send the request to "
            f"{ENDPOINTS[kind]}, or name another model.",
            param="model",
        )


def _kind_of_architecture(name: str) -> ModelKind | None:
    """`BertModel` is a bare encoder, `GPT2LMHeadModel` a language model."""
    if name.endswith("ForSequenceClassification"):
        return "rerank"
    if name.endswith("ForMaskedLM") or (name.endswith("Model") and not name.endswith("HeadModel")):
        return "embed"
    return None
