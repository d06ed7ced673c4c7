"""Converts config.json of any version of transformers to the form that mlx-lm's modules read. Runs in the worker.

transformers 5 puts the settings of the rotary embedding into `rope_parameters` and renames some fields; most modules of
mlx-lm read the older names, and a few read only the newer ones.
"""

import copy
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes

Config = dict[str, Any]

_THETA = ("rope_theta", "rotary_emb_base")
_LOCAL_THETA = ("rope_local_base_freq", "rope_local_theta", "swa_rope_theta")
_PARTIAL = ("partial_rotary_factor", "rotary_pct")
_NO_SCALING = ("default", "mrope")
"""`mrope` differs from `default` only for images."""
_RENAMED_TYPES = {"su": "longrope"}
_RENAMED_LAYERS = {"granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"}}


class UnusableConfig(Exception):
    """mlx-lm's module would compute wrong answers with this config. The message says why and what to do."""


def complete(config: Config) -> Config:
    """The config with each setting under all names that mlx-lm's modules read, at every level."""
    nested = {
        key: complete(value) for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)
    }
    config = config | nested
    for alias, name in _transformers_names(config.get("model_type")).items():
        if name in config:
            config.setdefault(alias, config[name])
    return _with_layers(_with_rope(config))


def model_classes(config: Config) -> tuple[type[nn.Module], Any]:
    """mlx-lm's classes for the model. Raises UnusableConfig if they ignore a setting of the rotary embedding."""
    model_class, args_class = _get_classes(config)

    def rope_of(changed: Config) -> list[object] | None:
        try:
            return list(_rope_state(model_class(args_class.from_dict(copy.deepcopy(changed)))))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    for setting, without in _without_each_setting(config):
        if (rope := rope_of(config)) is not None and rope == rope_of(without):
            raise UnusableConfig(
                f"its config.json sets {setting}, which mlx-lm's {config['model_type']!r} ignores. Its answers would "
                "be wrong. Update mlx-lm, or use another model."
            )
    return model_class, args_class


def _transformers_names(model_type: object) -> dict[str, str]:
    """Older names of fields, mapped to the names that transformers 5 writes."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = str(model_type)
    return dict(CONFIG_MAPPING[name].attribute_map) if name in CONFIG_MAPPING else {}


def _with_layers(config: Config) -> Config:
    """Adds the interval of full-attention layers, which older configs have instead of `layer_types`."""
    types: object = config.get("layer_types")
    if not isinstance(types, list):
        return config
    if "full_attention" in types:
        interval = types.index("full_attention") + 1
        if "sliding_attention" in types:
            config = {"sliding_window_pattern": interval} | config
        elif "linear_attention" in types:
            config = {"full_attention_interval": interval} | config
    renamed = _RENAMED_LAYERS.get(str(config.get("model_type")), {})
    return config | {"layer_types": [renamed.get(name, name) for name in types]}


def _with_rope(config: Config) -> Config:
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return _with_rope_parameters(config)
    whole, local = _whole(parameters), parameters.get("sliding_attention")
    config = config | {"rope_scaling": config.get("rope_scaling") or None}
    _set(config, _THETA, whole.get("rope_theta"))
    if isinstance(local, dict):
        _set(config, _LOCAL_THETA, local.get("rope_theta"))
    if not isinstance(local, dict) or local.get("partial_rotary_factor") == whole.get("partial_rotary_factor"):
        _set(config, _PARTIAL, whole.get("partial_rotary_factor"))
    if config["rope_scaling"] is None:
        config |= {"rope_scaling": {k: v for k, v in whole.items() if k not in (*_THETA, *_PARTIAL)}}
    return _with_scaling(_with_rotary_dim(config))


def _with_rope_parameters(config: Config) -> Config:
    """Adds `rope_parameters` to a config of the older form, for modules that read only the newer one."""
    config = _with_scaling(config)
    theta = next((config[name] for name in _THETA if name in config), None)
    if theta is None:
        return config
    partial = next(({_PARTIAL[0]: config[name]} for name in _PARTIAL if name in config), {})
    whole = {"rope_type": "default", **(config.get("rope_scaling") or {}), "rope_theta": theta, **partial}
    local_theta = next((config[name] for name in _LOCAL_THETA if name in config), theta)
    local = {"rope_type": "default", "rope_theta": local_theta, **partial}
    layers = {"sliding_attention": local, "full_attention": dict(whole)} if config.get("layer_types") else {}
    return config | {"rope_parameters": whole | layers}


def _whole(parameters: Config) -> Config:
    """The parameters of the full-attention layers, if each layer type has its own."""
    layers = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    whole: Config = layers.get("full_attention", next(iter(layers.values()), parameters))
    return whole


def _set(config: Config, names: tuple[str, ...], value: object) -> None:
    if value is not None:
        config.update(dict.fromkeys(names, value))


def _with_rotary_dim(config: Config) -> Config:
    heads, partial = config.get("num_attention_heads"), config.get(_PARTIAL[0])
    head_dim = config.get("head_dim") or (config.get("hidden_size", 0) // heads if heads else None)
    return {"rotary_dim": int(head_dim * partial)} | config if head_dim and partial else config


def _with_scaling(config: Config) -> Config:
    """Normalises `rope_scaling`: None without scaling, else with the type under both names."""
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, dict):
        return config
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    kind = _RENAMED_TYPES.get(kind, kind)
    if kind in _NO_SCALING:
        return config | {"rope_scaling": None}
    pretrained = "original_max_position_embeddings"
    scaling = scaling | {"type": kind, "rope_type": kind}
    if pretrained in config:
        scaling[pretrained] = config[pretrained]
    return ({pretrained: scaling[pretrained]} if pretrained in scaling else {}) | config | {"rope_scaling": scaling}


def _without_each_setting(config: Config) -> Iterator[tuple[str, Config]]:
    """Settings that change the model's output, each with the config without it: position scaling, and a separate base
    for the sliding-window layers."""
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict):
            yield from ((setting, config | {key: without}) for setting, without in _without_each_setting(value))
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling")
    if scaling is not None and not _scales_by_one(scaling):
        plain = {"type": "default", "rope_type": "default"}
        layers = {key: value | plain for key, value in parameters.items() if isinstance(value, dict)}
        without = {"rope_scaling": None, "rope_parameters": parameters | plain | layers}
        yield f"the rope type {scaling['rope_type']!r}", config | without
    whole, local = _whole(parameters), parameters.get("sliding_attention")
    if isinstance(local, dict) and local.get("rope_theta") != whole.get("rope_theta"):
        theta = {"rope_theta": whole.get("rope_theta")}
        without = dict.fromkeys(_LOCAL_THETA, whole.get("rope_theta"))
        yield (
            "another rope_theta for sliding_attention",
            config | without | {"rope_parameters": parameters | {"sliding_attention": local | theta}},
        )


def _scales_by_one(scaling: Config) -> bool:
    factors = [scaling[name] for name in ("factor", "alpha", "short_factor", "long_factor") if name in scaling]
    return bool(factors) and all(factor == 1 or (isinstance(factor, list) and set(factor) == {1}) for factor in factors)


def _rope_state(model: nn.Module) -> Iterator[object]:
    """The state of all modules besides their weights: plain attributes, and arrays that are not loaded."""
    for path, module in model.named_modules():
        yield path, type(module).__name__
        yield [(name, value) for name, value in vars(module).items() if isinstance(value, int | float | str)]
        yield [
            (name, value.tolist()) for name, value in module.items() if name[0] == "_" and isinstance(value, mx.array)
        ]
