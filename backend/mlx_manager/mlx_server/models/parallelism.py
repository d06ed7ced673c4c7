"""Decides how ranks can share a model, from its config and from mlx-lm's source. Does not import MLX."""

import ast
from pathlib import Path

from mlx_manager.mlx_server.engine.membership import Parallel
from mlx_manager.mlx_server.models.defaults import read_json, text_config
from mlx_manager.mlx_server.models.fitness import mlx_lm_folder, module_name
from mlx_manager.mlx_server.rank_settings import MAX_RANKS, ParallelChoice

_DIVIDED = {
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key-value heads",
    "intermediate_size": "columns of a feed-forward layer",
    "moe_intermediate_size": "columns of an expert",
}
"""What tensor parallelism divides, by its name in config.json."""


class Indivisible(Exception):
    """The ranks cannot share the model; the message says why, and the remedy."""


def choose_parallel(folder: Path, ranks: int, wanted: ParallelChoice) -> Parallel:
    """Tensor parallelism where it is possible, else a pipeline, unless `wanted` names one. Raises Indivisible."""
    config = read_json(folder / "config.json")
    fault = _tensor_fault(config, ranks)
    if wanted == "tensor" and fault is not None:
        raise Indivisible(fault)
    if wanted != "pipeline" and fault is None:
        return "tensor"
    no_pipeline = _pipeline_fault(config, ranks)
    if no_pipeline is None:
        return "pipeline"
    raise Indivisible(no_pipeline if wanted == "pipeline" or fault is None else f"{fault} {no_pipeline}")


def _tensor_fault(config: dict[str, object], ranks: int) -> str | None:
    module = module_name(config)
    if not _defines(module, "Model", "shard"):
        return f"mlx-lm cannot shard the architecture {module!r}."
    sizes = _sizes(config)
    odd = {name: count for name, count in sizes.items() if count % ranks}
    if not odd:
        return None
    possible = [str(n) for n in range(2, MAX_RANKS + 1) if not any(count % n for count in sizes.values())]
    what = " and ".join(f"{count} {_DIVIDED[name]}" for name, count in odd.items())
    remedy = f"Use {' or '.join(possible[:4])} ranks." if possible else "No number of ranks divides them."
    return f"its {what} cannot be divided among {ranks} ranks. {remedy}"


def _sizes(config: dict[str, object]) -> dict[str, int]:
    inner = text_config(config)
    found = {name: inner.get(name, config.get(name)) for name in _DIVIDED}
    return {name: count for name, count in found.items() if isinstance(count, int) and count > 0}


def _pipeline_fault(config: dict[str, object], ranks: int) -> str | None:
    module = module_name(config)
    if not any("PipelineMixin" in map(_last_name, node.bases) for node in _classes(module)):
        return f"mlx-lm has no pipeline for the architecture {module!r}."
    layers = text_config(config).get("num_hidden_layers", config.get("num_hidden_layers"))
    if isinstance(layers, int) and layers < ranks:
        return f"its {layers} layers are fewer than {ranks} ranks. Use {layers} ranks or fewer."
    return None


def _defines(module: str, class_name: str, method: str) -> bool:
    """Whether a class of a module of mlx-lm has the method, or inherits it from another such module."""
    found = next((node for node in _classes(module) if node.name == class_name), None)
    if found is None:
        return False
    if any(isinstance(member, ast.FunctionDef) and member.name == method for member in found.body):
        return True
    bases = set(map(_last_name, found.bases))
    imported = [
        node for node in _parsed(module) if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
    ]
    return any(
        _defines(str(node.module), alias.name, method)
        for node in imported
        for alias in node.names
        if (alias.asname or alias.name) in bases
    )


def _last_name(base: ast.expr) -> str:
    return ast.unparse(base).rpartition(".")[2]


def _classes(module: str) -> list[ast.ClassDef]:
    return [node for node in _parsed(module) if isinstance(node, ast.ClassDef)]


def _parsed(module: str) -> list[ast.stmt]:
    folder = mlx_lm_folder()
    file = folder / "models" / f"{module}.py" if folder is not None else None
    return ast.parse(file.read_text("utf-8")).body if file is not None and file.is_file() else []
