"""A tokenizer.json for folders that have none. A process that ends then writes it, and the user's cache keeps it.

transformers is imported in that process only. A folder has none where its tokenizer is a SentencePiece model, a
vocabulary with merges, a tiktoken file, or Python code of the model's own, which runs with `trust_remote_code` alone.
"""

import hashlib
import importlib.metadata
import json
import os
import threading
from pathlib import Path

from mlx_manager.mlx_server.isolation.processes import FailureCause, ProcessFailed, ProcessPool
from mlx_manager.mlx_server.models.converter import CPU_SECONDS, MEMORY_BYTES
from mlx_manager.mlx_server.models.defaults import read_json
from mlx_manager.mlx_server.models.tokenization import TOKENIZER_FILE
from mlx_manager.mlx_server.models.tokenizer_files import CONFIG_FILE

ANSWER_SECONDS = 900.0
"""The process ends itself after `CPU_SECONDS` of computing; this is for one on a machine that is busy."""
_MAX_ANSWER_BYTES = 2**16
_VERSION = 1
"""To be raised when the converter writes something else."""
_WEIGHTS = (".safetensors", ".bin", ".pth", ".gguf", ".npz", ".index.json")
_FAILURES: dict[FailureCause, str] = {
    "time": f"takes more than {CPU_SECONDS:g} seconds of computing",
    "memory": f"takes more than {MEMORY_BYTES // 2**30} GB of memory",
    "size": "fails with a message that is too long",
    "crash": "ends the process that does it",
}
_one_at_a_time = threading.Lock()


class NotConvertible(Exception):
    """Why there is no tokenizer.json, and what to do."""


def tokenizer_folder(folder: Path, *, trust_remote_code: bool = False) -> Path:
    """Where the model's tokenizer.json lies: `folder` itself, or one in the user's cache.

    Blocks, for a conversion up to minutes: call it in a thread. Raises NotConvertible.
    """
    if not _needs_conversion(folder, trust_remote_code):
        return folder
    converted = _cache() / _key(folder, trust_remote_code)
    with _one_at_a_time:
        if not (converted / TOKENIZER_FILE).is_file():
            _convert(folder, converted, trust_remote_code)
    return converted


def _needs_conversion(folder: Path, trust_remote_code: bool) -> bool:
    """Trusted code decides even where there is a tokenizer.json beside it."""
    return not (folder / TOKENIZER_FILE).is_file() or (trust_remote_code and _brings_code(folder))


def _brings_code(folder: Path) -> bool:
    auto_map = read_json(folder / CONFIG_FILE).get("auto_map")
    return isinstance(auto_map, list) or (isinstance(auto_map, dict) and "AutoTokenizer" in auto_map)


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "mlx-manager" / "tokenizers"


def _key(folder: Path, trust_remote_code: bool) -> str:
    """A digest of all that a conversion depends on: the folder's files but its weights, and transformers' version."""
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
            f"it has no {TOKENIZER_FILE}, and {converted.parent} for a converted one cannot be made: {exc.strerror}. "
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
        failure = f"it {_FAILURES[exc.cause]}"
    finally:
        processes.close()
    if failure:
        untrusted = "set trust_remote_code = true in its [[models]] entry if you trust the code that it brings, or "
        remedy = untrusted if _brings_code(folder) and not trust_remote_code else ""
        raise NotConvertible(
            f"its tokenizer cannot be converted to {TOKENIZER_FILE}: {failure.rstrip('.')}. To load it, {remedy}copy "
            f"{TOKENIZER_FILE} from another version of the model."
        )
