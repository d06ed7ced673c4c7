"""Explains why mlx-lm cannot load a model, and the remedy, from its files or from the exception of a load.

Contains all messages about failed loads. Reads files; does not import MLX.
"""

import ast
import difflib
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from mlx_manager.mlx_server.engine.embedding.recipe import UnusableModel, read_recipe
from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.models.conversion import NotConvertible
from mlx_manager.mlx_server.models.defaults import read_json, text_config
from mlx_manager.mlx_server.models.weights import BrokenWeights, check_weights, tensor_names, weight_files

_QUANTIZATIONS = {"bitnet", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt", "awq", "gptq"}
"""The `quant_method`s that mlx-lm reads in addition to MLX's own."""
_PACKED_FORMATS = {"nvfp4-pack-quantized", "mxfp4-pack-quantized", "pack-quantized"}
"""Formats of compressed-tensors that mlx-lm reads."""
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "*.tiktoken", "tiktoken.model"),
    *("spiece.model", "sentencepiece.bpe.model", "*.spm"),
)
_OTHER_WEIGHTS = {
    "*.gguf": "a GGUF file, which mlx-lm does not load. Serve it with llama.cpp as an upstream",
    "*.bin": "PyTorch files, which mlx-lm does not load. Convert them to safetensors",
    "*.pth": "PyTorch files, which mlx-lm does not load. Convert them to safetensors",
    "*.npz": "NumPy files, which mlx-lm no longer loads. Convert them to safetensors",
    "*.safetensors": "files of another name, which mlx-lm does not load. Download the model again",
}
_DOWNLOAD_AGAIN = "Download the model again."
_OTHER_VERSION = "Use the original model, or a version that mlx-lm has quantised."
_MAX_NAMES = 3


def why_it_cannot_load(
    folder: Path, trust_remote_code: bool = False, adapter: Path | None = None, kind: ModelKind = "generate"
) -> str | None:
    """The first fault found in the model's files, with its remedy. None for a model without a known fault."""
    return next(_faults(folder, trust_remote_code, adapter, kind), None)


def explain(failure: str) -> str:
    """The fault and remedy for an exception from a worker's load, given as "name: message"."""
    kind, _, message = failure.partition(": ")
    count, names = _listed_weights(message)
    if kind in ("UnusableConfig", "UnusableModel", "UnusableRanks"):
        return message
    if kind == "WarmUpFailed":
        return (
            f"its first steps fail ({message.rstrip('.')}). Update mlx-lm, or use another model. With "
            "MLX_SERVER_WARM_UP=false the server does not try them before requests do."
        )
    if message.startswith("Missing ") and names == ["lm_head.weight"]:
        return (
            "its files have no lm_head.weight, and its config.json has no tie_word_embeddings = true. Set that if the "
            f"model shares its embedding weights. Otherwise its files are incomplete. {_DOWNLOAD_AGAIN}"
        )
    if message.startswith("Missing "):
        return f"its files lack {count} weights of its architecture: {', '.join(names)}. {_DOWNLOAD_AGAIN}"
    if message.startswith("Received ") and any(".lora_" in name for name in names):
        return f"its files contain an adapter as well as the weights: {', '.join(names)}. Fuse them with mlx_lm.fuse."
    if message.startswith("Received "):
        return (
            f"its files have {count} weights that mlx-lm's architecture does not have: {', '.join(names)}. Its "
            f"config.json belongs to another model, or its quantisation does not run on MLX. {_OTHER_VERSION}"
        )
    if message.startswith("Expected shape "):
        return (
            f"a weight does not have the shape that its config.json gives it: {message.rstrip('.')}. {_DOWNLOAD_AGAIN}"
        )
    if kind == "TypeError" and "required positional argument" in message:
        return f"its config.json has no {message.rpartition(': ')[2]}, which its architecture needs. {_DOWNLOAD_AGAIN}"
    return f"mlx-lm raised {failure.rstrip('.')}. Update mlx-lm, or use another model."


def explain_tokenizer(exc: Exception) -> str:
    """The fault and remedy for an exception from loading the tokenizer."""
    if isinstance(exc, NotConvertible):
        return str(exc)
    reason = str(exc).strip().partition("\n")[0].rstrip(".:")
    return f"its tokenizer cannot be read: {type(exc).__name__}: {reason}. Copy tokenizer.json from the original model."


def has_tokenizer(folder: Path) -> bool:
    return any(file.is_file() for name in _TOKENIZERS for file in folder.glob(name))


def quantization_name(config: dict[str, object]) -> str | None:
    """The quantisation's name, such as "4-bit". None for a model that is not quantised."""
    own = config.get("quantization")
    if isinstance(own, dict) and isinstance(own.get("bits"), int):
        mode = own.get("mode", "affine")
        return f"{own['bits']}-bit" if mode == "affine" else str(mode)
    method = _foreign_quantization(config).get("quant_method")
    return str(method) if method is not None else None


def _faults(folder: Path, trust_remote_code: bool, adapter: Path | None, kind: ModelKind) -> Iterator[str]:
    config = read_json(folder / "config.json")
    if not config:
        yield _why_no_config(folder)
    has_own_code = config.get("model_file") is not None
    if has_own_code and not trust_remote_code:
        yield (
            f"it needs its own code ({config['model_file']!r}). If you trust the code, set trust_remote_code = true in "
            "its [[models]] entry."
        )
    if not has_own_code and kind == "generate":
        yield from _unknown_generator(config)
    if kind != "generate":
        yield from _recipe_faults(folder, kind)
        if adapter is not None:
            yield "only generative models can have an adapter. Remove adapter from its [[models]] entry."
    yield from _foreign_quantization_faults(folder, _foreign_quantization(config))
    yield from _weights_faults(folder)
    if not has_tokenizer(folder):
        yield f"{folder} has no tokenizer. Copy tokenizer.json from the original model, or download the model again."
    if adapter is not None:
        yield from _adapter_faults(adapter)


def _why_no_config(folder: Path) -> str:
    adapter = read_json(folder / "adapter_config.json")
    if adapter:
        base = adapter.get("base_model_name_or_path", adapter.get("model"))
        named = f", {base!r}," if isinstance(base, str) else ""
        return (
            f"{folder} holds an adapter and no model. Load its base model{named} with adapter = {str(folder)!r} in "
            "its [[models]] entry."
        )
    if any(folder.glob("*.gguf")):
        return f"it is {_OTHER_WEIGHTS['*.gguf']}."
    return f"{folder} has no readable config.json. {_DOWNLOAD_AGAIN}"


def _unknown_generator(config: dict[str, object]) -> Iterator[str]:
    known = _known_types()
    name = module_name(config)
    if not known or (name in known and re.fullmatch(r"[\w-]+", name)):
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" The nearest supported one is {near[0]!r}." if near else ""
    yield (
        f"mlx-lm does not support its model_type {config.get('model_type')!r}.{hint} Update mlx-lm, or use "
        "another model."
    )


def _recipe_faults(folder: Path, kind: ModelKind) -> Iterator[str]:
    """The faults of an embedding model or a reranker."""
    try:
        read_recipe(folder, kind)
    except UnusableModel as exc:
        yield str(exc)


def _foreign_quantization(config: dict[str, object]) -> dict[str, object]:
    """The quantisation config of a model that MLX did not quantise; empty for all others."""
    if isinstance(config.get("quantization"), dict):
        return {}
    foreign = config.get("quantization_config", text_config(config).get("quantization_config"))
    return foreign if isinstance(foreign, dict) else {}


def _foreign_quantization_faults(folder: Path, foreign: dict[str, object]) -> Iterator[str]:
    if not foreign:
        return
    method, settings = foreign.get("quant_method"), foreign.get("quantization", foreign)
    if method is None:
        yield (
            "the quantization_config of its config.json names no quant_method. Rename that entry to quantization if "
            "mlx-lm quantised the model. Remove it if the model is not quantised."
        )
    if method not in _QUANTIZATIONS:
        yield f"its quantisation, {method!r}, does not run on MLX. {_OTHER_VERSION}"
    packing = foreign.get("format")
    if method == "compressed-tensors" and packing not in _PACKED_FORMATS:
        yield f"its quantisation, compressed-tensors in the format {packing!r}, does not run on MLX. {_OTHER_VERSION}"
    if method in ("awq", "gptq") and foreign.get("bits", 4) != 4:
        yield f"its quantisation, {method} of {foreign['bits']} bits, does not run on MLX. {_OTHER_VERSION}"
    if method == "gptq" and any(name.endswith(".g_idx") for name in tensor_names(folder)):
        yield f"its quantisation, gptq with an order of groups (g_idx), does not run on MLX. {_OTHER_VERSION}"
    algorithm = settings.get("quant_algo") if isinstance(settings, dict) else None
    if method == "modelopt" and algorithm != "NVFP4":
        yield f"its quantisation, modelopt's {algorithm!r}, does not run on MLX. {_OTHER_VERSION}"


def _weights_faults(folder: Path) -> Iterator[str]:
    if not weight_files(folder):
        for pattern, kind in _OTHER_WEIGHTS.items():
            if (found := next(folder.glob(pattern), None)) is not None:
                yield f"its weights ({found.name}) are {kind}, or use a version that has model*.safetensors."
    try:
        check_weights(folder)
    except BrokenWeights as exc:
        yield f"{exc}. {_DOWNLOAD_AGAIN}"


def _adapter_faults(adapter: Path) -> Iterator[str]:
    config = read_json(adapter / "adapter_config.json")
    if "peft_type" in config or (adapter / "adapter_model.safetensors").is_file():
        yield (
            f"the adapter in {adapter} has the format of PEFT, which mlx-lm does not load. Merge it into its base "
            "model with PEFT's merge_and_unload() and serve the result, or train an adapter with mlx_lm.lora."
        )
    if not config:
        yield f"the adapter's folder {adapter} has no readable adapter_config.json. Copy it there."
    if not (adapter / "adapters.safetensors").is_file():
        yield f"the adapter's folder {adapter} has no adapters.safetensors. Copy it there."


def _listed_weights(message: str) -> tuple[str, list[str]]:
    """The number of weights in MLX's error message, and the first names."""
    heading, _, listed = message.partition("\n")
    names = [name.strip(" .") for name in re.split(r"[,\n]", listed) if name.strip(" .")]
    more = [f"and {len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    return "".join(re.findall(r"\d+", heading)[:1]), names[:_MAX_NAMES] + more


def module_name(config: dict[str, object]) -> str:
    """The name of mlx-lm's module for the model."""
    model_type = str(config.get("model_type"))
    architectures = config.get("architectures")
    names = [architectures] if isinstance(architectures, str) else architectures
    for architecture in names if isinstance(names, list) else []:
        model_type = _remapping("MODEL_ARCHITECTURE_REMAPPING").get((model_type, architecture), model_type)
    return _remapping("MODEL_REMAPPING").get(model_type, model_type)


def _known_types() -> list[str]:
    """The names of mlx-lm's model modules. Empty where they are not files; then only the worker can tell."""
    folder = mlx_lm_folder()
    return sorted(file.stem for file in (folder / "models").glob("*.py")) if folder is not None else []


@functools.cache
def mlx_lm_folder() -> Path | None:
    spec = importlib.util.find_spec("mlx_lm")
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) if places and (Path(places[0]) / "models").is_dir() else None


@functools.cache
def _remapping(name: str) -> dict[object, str]:
    """mlx-lm's table from architecture names to its modules.

    Parses the source, because the import would load MLX into the API process.
    """
    folder = mlx_lm_folder()
    if folder is None:
        return {}
    for node in ast.parse((folder / "utils.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            table: dict[object, str] = ast.literal_eval(node.value)
            return table
    return {}
