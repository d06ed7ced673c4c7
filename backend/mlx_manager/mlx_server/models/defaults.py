"""Generation defaults from generation_config.json and config.json, and helpers that read such files."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.types import SamplingOverrides

logger = logging.getLogger(__name__)

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """Generation defaults from the model's files. None and empty mean not set."""

    sampling: SamplingOverrides
    max_tokens: int | None
    context_length: int | None
    eos_token_ids: tuple[int, ...]


def read_defaults(folder: Path) -> ModelDefaults:
    """Reads generation_config.json and config.json."""
    generation = read_json(folder / "generation_config.json")
    config = read_json(folder / "config.json")
    temperature = generation.get("temperature")
    if generation.get("do_sample") is False:
        temperature = 0.0
    return ModelDefaults(
        sampling=SamplingOverrides(
            temperature=_within(0, 2, "temperature", _number(temperature)),
            top_p=_within(1e-6, 1, "top_p", _number(generation.get("top_p"))),
            top_k=_within(0, 2**31, "top_k", _integer(generation.get("top_k"))),
            min_p=_within(0, 1, "min_p", _number(generation.get("min_p"))),
            repetition_penalty=_within(0.01, 2, "repetition_penalty", _number(generation.get("repetition_penalty"))),
        ),
        max_tokens=_within(1, 2**31, "max_new_tokens", _integer(generation.get("max_new_tokens"))),
        context_length=context_length(config),
        eos_token_ids=tuple(
            dict.fromkeys(token for content in (generation, config, text_config(config)) for token in _eos(content))
        ),
    )


def with_settings(defaults: ModelDefaults, settings: ModelSettings) -> ModelDefaults:
    """The defaults with the settings of the model's `[[models]]` entry, which take precedence."""
    overrides = settings.sampling.model_dump(exclude_none=True)
    return ModelDefaults(
        sampling=replace(defaults.sampling, **overrides),
        max_tokens=settings.max_tokens if settings.max_tokens is not None else defaults.max_tokens,
        context_length=settings.context_length if settings.context_length is not None else defaults.context_length,
        eos_token_ids=defaults.eos_token_ids,
    )


def context_length(config: dict[str, object]) -> int | None:
    return _integer(text_config(config).get("max_position_embeddings"))


def text_config(config: dict[str, object]) -> dict[str, object]:
    """The language model's config, which multimodal models nest under `text_config`."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def read_json(file: Path) -> dict[str, object]:
    """The JSON object in the file. Empty where the file has none."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def changed_at(file: Path | None) -> int:
    """The file's modification time in Unix nanoseconds. 0 for a missing file."""
    try:
        return file.stat().st_mtime_ns if file is not None else 0
    except OSError:
        return 0


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _within(low: float, high: float, name: str, value: N | None) -> N | None:
    """The value, or None with a warning when the value is out of range."""
    if value is None or low <= value <= high:
        return value
    logger.warning("Ignoring %s=%s of a generation_config.json: it must be between %s and %s", name, value, low, high)
    return None


def _eos(content: dict[str, object]) -> tuple[int, ...]:
    value = content.get("eos_token_id")
    candidates = value if isinstance(value, list) else [value]
    return tuple(token for token in map(_integer, candidates) if token is not None)
