"""A tiny model with random weights for each of mlx-lm's architectures, made from `configs.json`.

`common` has a value for every name that a config may have, `own` what an architecture needs in place of it,
`text_model_of` the architecture of a nested text model, `whole` configs that share nothing, and `variants` the same
architectures with other settings.
"""

import dataclasses
import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_map_with_path
from mlx_lm.utils import MODEL_REMAPPING, _get_classes

Config = dict[str, Any]

_CONFIGS: dict[str, Any] = json.loads((Path(__file__).parent / "configs.json").read_text())
VOCABULARY: int = _CONFIGS["common"]["vocab_size"]

NO_ARCHITECTURES = frozenset(
    "activations base bitlinear_layers cache gated_delta mla pipeline rope_utils ssm switch_layers".split()
)
"""Modules of `mlx_lm.models` that architectures share."""
NOT_TRIED = {
    "olmo": "mlx-lm's module needs the package ai2-olmo",
    "prism_hadamard_qwen35": "qwen3_5 with weights that only its authors' tool packs",
}

SLOW_DECAY = -4.0
"""For `A_log`: a state space layer forgets about 2 % with each token, so what leaks into its state stays visible."""


def architectures() -> list[str]:
    """All that the installed mlx-lm has, but for those that cannot be tried."""
    modules = {module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)}
    return sorted(modules - NO_ARCHITECTURES - set(NOT_TRIED))


def variants() -> list[str]:
    return sorted(_CONFIGS["variants"])


def build(name: str, long_memory: bool = False) -> nn.Module:
    """The architecture or variant, float32, with the same weights each time."""
    config = config_of(name)
    model_class, arguments = _get_classes(config)
    mx.random.seed(7)
    model = model_class(arguments.from_dict(config))
    model.update(tree_map_with_path(lambda path, part: _random(path, part, long_memory), model.parameters()))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model.eval()


def config_of(name: str) -> Config:
    if name in _CONFIGS["whole"]:
        return {"model_type": name, "vocab_size": VOCABULARY, **_CONFIGS["whole"][name]}
    if name in _CONFIGS["variants"]:
        variant: Config = _CONFIGS["variants"][name]
        return _filled(variant["model_type"]) | variant
    inner = _CONFIGS["text_model_of"].get(name)
    if inner is not None:
        text_config = _filled(inner) | _CONFIGS["own"].get(name, {})
        return {"model_type": name, "vocab_size": VOCABULARY, "tie_word_embeddings": True, "text_config": text_config}
    return _filled(name)


def _filled(model_type: str) -> Config:
    """The common values of the names that the architecture's arguments have, and its own."""
    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(model_type, model_type)}")
    arguments = [part for part in vars(module).values() if isinstance(part, type) and dataclasses.is_dataclass(part)]
    names = {field.name for part in arguments for field in dataclasses.fields(part)}
    common = {name: value for name, value in _CONFIGS["common"].items() if name in names}
    own: Config = _CONFIGS["own"].get(model_type, {})
    return common | {"model_type": model_type} | own


def _random(path: str, part: mx.array, long_memory: bool) -> mx.array:
    """Weights large enough that every layer matters; what a recurrence needs in a range of its own stays."""
    if path.endswith("A_log") and long_memory:
        return mx.full(part.shape, SLOW_DECAY, part.dtype)
    is_of_recurrence = path.endswith(("A_log", "dt_bias", ".D"))
    if not mx.issubdtype(part.dtype, mx.floating) or is_of_recurrence or part.ndim == 0:
        return part
    if part.ndim == 1:
        return part + 0.1 * mx.random.normal(part.shape)
    drawn: mx.array = mx.random.normal(part.shape) * (1.4 / part.shape[-1] ** 0.5)
    return drawn
