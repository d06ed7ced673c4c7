"""Chooses a model's adapter by its family, detected from the model's name, then from its config."""

import json
import logging
import re
from pathlib import Path

from mlx_manager.mlx_server.models.adapters.base import DefaultAdapter, ModelAdapter
from mlx_manager.mlx_server.models.adapters.families import TURN_END_TOKENS, FamilyAdapter, MistralAdapter
from mlx_manager.mlx_server.models.adapters.llama import LlamaAdapter

logger = logging.getLogger(__name__)

_FAMILY_PATTERNS = {
    "llama": re.compile(r"llama"),
    "qwen": re.compile(r"qwen|qwq"),
    "mistral": re.compile(r"mistral|mixtral|ministral|codestral|devstral"),
    "gemma": re.compile(r"gemma"),
    "phi": re.compile(r"(?<![a-z])phi(?![a-z])"),  # but not dolphin
    "deepseek": re.compile(r"deepseek"),
    "glm": re.compile(r"(?<![a-z])(chat)?glm"),
    "gpt_oss": re.compile(r"gpt[-_]oss"),
}

_adapters: dict[str, ModelAdapter] = {
    "default": DefaultAdapter(),
    "llama": LlamaAdapter(),
    "mistral": MistralAdapter(),
    **{family: FamilyAdapter(family, tokens) for family, tokens in TURN_END_TOKENS.items()},
}


def register_adapter(family: str, adapter: ModelAdapter) -> None:
    """Registers `adapter` for models of `family` that are loaded from now on."""
    if isinstance(adapter, type) or not isinstance(adapter, ModelAdapter):
        raise TypeError(f"Invalid adapter {adapter!r}. Give it family, apply_chat_template and get_stop_tokens.")
    _adapters[family.lower()] = adapter


def get_supported_families() -> list[str]:
    """Families that have an adapter, and "default"."""
    return list(_adapters)


def get_adapter(model_id: str, model_path: Path | None = None) -> ModelAdapter:
    """The adapter of the model's family, or the default adapter."""
    return _adapters.get(detect_model_family(model_id, model_path), _adapters["default"])


def detect_model_family(model_id: str, model_path: Path | None = None) -> str:
    """The family in the last part of the id, else in `model_type` of the model's config.json, else "default".

    `model_path` is the model's folder. Without it, `model_id` may be a folder.
    """
    name = model_id.rstrip("/").rsplit("/", 1)[-1]
    family = _match(name) or _match(_model_type(model_path or Path(model_id)))
    if family is None:
        logger.info("Unknown family of model %s: using the default adapter", model_id)
    return family or "default"


def _match(text: str) -> str | None:
    """The family whose name comes first in the text: "Mistral-7B-distill-llama" is a Mistral."""
    lowered = text.lower()
    found = [(m.start(), family) for family, pattern in _FAMILY_PATTERNS.items() if (m := pattern.search(lowered))]
    return min(found)[1] if found else _registered_name(lowered)


def _registered_name(lowered: str) -> str | None:
    """Families registered by `register_adapter` match by name."""
    known = {"default", *_FAMILY_PATTERNS}
    return next((family for family in _adapters if family not in known and family in lowered), None)


def _model_type(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    model_type = config.get("model_type") if isinstance(config, dict) else None
    return model_type if isinstance(model_type, str) else ""
