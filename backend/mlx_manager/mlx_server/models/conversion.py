"""Converts other tokenizers to tokenizer.json, in a separate process, and caches the result for the user.

Only that process imports transformers. Other tokenizers are SentencePiece models, vocabularies with merges, tiktoken
files, and the model's own Python code, which runs only with `trust_remote_code`.
"""

import hashlib
import importlib.metadata
import json
import threading
from pathlib import Path

from mlx_manager.mlx_server.isolation.processes import FailureCause, ProcessFailed, ProcessPool
from mlx_manager.mlx_server.models.converter import CPU_SECONDS, MEMORY_BYTES
from mlx_manager.mlx_server.models.defaults import read_json
from mlx_manager.mlx_server.models.tokenization import TOKENIZER_FILE
from mlx_manager.mlx_server.models.tokenizer_files import CONFIG_FILE
from mlx_manager.mlx_server.utils.folders import cache_folder

ANSWER_SECONDS = 900.0
"""Wall-clock limit. The process also ends itself after `CPU_SECONDS` of computing."""
_MAX_ANSWER_BYTES = 2**16
_VERSION = 1
"""Increase it when the converter's output changes."""
_WEIGHTS = (".safetensors", ".bin", ".pth", ".gguf", ".npz", ".index.json")
_FAILURES: dict[FailureCause, str] = {
    "time": f"takes more than {CPU_SECONDS:g} seconds of computing",
    "memory": f"takes more than {MEMORY_BYTES // 2**30} GB of memory",
    "size": "fails with a message that is too long",
    "crash": "crashes the process that runs it",
}
_one_at_a_time = threading.Lock()


class NotConvertible(Exception):
    """The message says why there is no tokenizer.json, and the remedy."""


def tokenizer_folder(folder: Path, *, trust_remote_code: bool = False) -> Path:
    """The folder of the model's tokenizer.json: `folder` itself, or a folder in the user's cache.

    Blocks, up to minutes for a conversion: call it in a thread. Raises NotConvertible.
    """
    if not _needs_conversion(folder, trust_remote_code):
        return folder
    converted = cache_folder("tokenizers") / _key(folder, trust_remote_code)
    with _one_at_a_time:
        if not (converted / TOKENIZER_FILE).is_file():
            _convert(folder, converted, trust_remote_code)
    return converted


def _needs_conversion(folder: Path, trust_remote_code: bool) -> bool:
    """The model's own trusted code takes precedence over its tokenizer.json."""
    return not (folder / TOKENIZER_FILE).is_file() or (trust_remote_code and _has_own_code(folder))


def _has_own_code(folder: Path) -> bool:
    auto_map = read_json(folder / CONFIG_FILE).get("auto_map")
    return isinstance(auto_map, list) or (isinstance(auto_map, dict) and "AutoTokenizer" in auto_map)


def _key(folder: Path, trust_remote_code: bool) -> str:
    """A digest of the inputs of a conversion: the folder's files except weights, and the transformers version."""
    versions = [_VERSION, importlib.metadata.version("transformers"), trust_remote_code]
    digest = hashlib.sha256(json.dumps(versions).encode())
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.endswith(_WEIGHTS):
            content = file.read_bytes()
            digest.update(f"\n{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]


def _convert(folder: Path, converted: Path, trust_remote_code: bool) -> None:
    try:
        converted.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise NotConvertible(
            f"it has no {TOKENIZER_FILE}, and the cache folder {converted.parent} cannot be created: {exc.strerror}. "
            "Set XDG_CACHE_HOME to a folder that the server can write to."
        ) from exc
    question = {"folder": str(folder), "to": str(converted), "trust_remote_code": trust_remote_code}
    processes = ProcessPool(
        "mlx_manager.mlx_server.models.converter",
        max_idle=0,
        answer_seconds=ANSWER_SECONDS,
        max_answer_bytes=_MAX_ANSWER_BYTES,
    )
    try:
        failure = processes.ask(json.dumps(question).encode()).decode()
    except ProcessFailed as exc:
        failure = f"the conversion {_FAILURES[exc.cause]}"
    finally:
        processes.close()
    if failure:
        trust = "Set trust_remote_code = true in its [[models]] entry if you trust the model's code, or copy"
        remedy = trust if _has_own_code(folder) and not trust_remote_code else "Copy"
        raise NotConvertible(
            f"its tokenizer cannot be converted to {TOKENIZER_FILE}: {failure.rstrip('.')}. {remedy} "
            f"{TOKENIZER_FILE} from another version of the model."
        )
