"""The Hugging Face hub and its local cache: finds complete models, and downloads others. Knows no settings."""

import asyncio
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from mlx_manager.mlx_server.errors import ModelLoadFailed
from mlx_manager.mlx_server.models.defaults import changed_at
from mlx_manager.mlx_server.models.fitness import has_tokenizer
from mlx_manager.mlx_server.models.weights import missing_weight_files, weight_files
from mlx_manager.mlx_server.types import LoadStage
from mlx_manager.proxies import unusable

T = TypeVar("T")

HUB_PATTERNS = [
    *("*.json", "model*.safetensors", "*_Dense/model.safetensors", "*.py", "*.txt", "*.jsonl", "*.jinja"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model", "*.tiktoken", "*.spm"),
]
_EXAMPLE_REPO = "mlx-community/Llama-3.2-3B-Instruct-4bit"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(slots=True)
class Progress:
    """The progress of a load. Any thread may write it; `total_bytes` is 0 until it is known."""

    stage: LoadStage = "waiting"
    done_bytes: int = 0
    total_bytes: int = 0

    def warms_up(self) -> None:
        self.stage = "warming up"

    def loaded(self, nbytes: int) -> None:
        self.done_bytes = min(nbytes, self.total_bytes)


def is_repo_id(name: str) -> bool:
    """Whether the name has the form `organisation/model`. No path to another folder has that form."""
    return _REPO_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def cached_repos() -> Iterator[str]:
    """Ids of the models in the cache, complete or not."""
    cache = cache_folder()
    if os.path.isdir(cache):  # Path.is_dir raises below a folder without permission
        for folder in sorted(cache.glob("models--*--*")):
            yield folder.name.removeprefix("models--").replace("--", "/", 1)


def cached_folder(repo_id: str, revision: str | None = None) -> Path | None:
    """The folder of a model that is complete in the cache, else None. Does not contact the hub.

    Without a `revision`: the snapshot of `main`, or the newest complete one if that is missing.
    """
    if not is_repo_id(repo_id):
        return None
    repo = cache_folder() / f"models--{repo_id.replace('/', '--')}"
    named = [repo / "snapshots" / commit for commit in _commits(repo, revision if revision is not None else "main")]
    others = sorted(repo.glob("snapshots/*"), key=changed_at, reverse=True) if revision is None else []
    return next((folder for folder in (*named, *others) if _is_whole(folder)), None)


def _commits(repo: Path, revision: str) -> Iterator[str]:
    """The commit that the cache has for the revision, and the revision itself, which may be a commit."""
    try:
        commits = [(repo / "refs" / revision).read_text("utf-8").strip(), revision]
    except (OSError, ValueError):
        commits = [revision]
    return (commit for commit in commits if re.fullmatch(r"\w+", commit))


async def download(repo_id: str, revision: str | None, progress: Progress) -> Path:
    """Downloads missing files of the model and returns its folder in the cache. Raises ModelLoadFailed."""
    progress.stage = "downloading"
    return await in_daemon_thread(lambda: _download(repo_id, revision, progress))


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Unlike `asyncio.to_thread`, does not delay the exit of the process while the hub does not answer."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def report(set_outcome: Callable[[], None]) -> None:
        if not outcome.done():
            set_outcome()

    def run() -> None:
        try:
            result = work()
        except Exception as exc:
            failure = exc
            loop.call_soon_threadsafe(report, lambda: outcome.set_exception(failure))
        else:
            loop.call_soon_threadsafe(report, lambda: outcome.set_result(result))

    threading.Thread(target=run, daemon=True).start()
    return await outcome


def _download(repo_id: str, revision: str | None, progress: Progress) -> Path:
    import httpx2  # the hub's client raises errors of httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    bar = _counting_bar(progress)
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=HUB_PATTERNS, tqdm_class=bar))
    except HFValidationError as exc:
        raise ModelLoadFailed(
            f"{repo_id!r} is neither a folder on this machine nor a Hugging Face repo id. Use a folder, or an id "
            f"such as {_EXAMPLE_REPO!r}."
        ) from exc
    except ImportError as exc:  # the hub's client needs another package for a SOCKS proxy
        raise ModelLoadFailed(f"Model {repo_id!r} cannot be downloaded: {unusable(exc)}") from exc
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx2.HTTPError, OSError) as exc:
        raise ModelLoadFailed(
            f"Model {repo_id!r} cannot be downloaded from the Hugging Face hub: {str(exc).strip().rstrip('.')}. "
            "Check the id, the network and HF_TOKEN, then retry."
        ) from exc


def _counting_bar(progress: Progress) -> Any:
    """A progress bar for the hub's client that counts the bytes on disk and draws nothing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Nowhere:
        def write(self, text: str) -> int:
            return len(text)

        def flush(self) -> None:
            pass

    class CountingBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            nowhere: TextIO | Nowhere = Nowhere()
            self._counts = str(kwargs.get("desc")).startswith("Reconstructing")
            super().__init__(*args, **kwargs | {"disable": False, "file": nowhere})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            self._count()
            return drawn

        def refresh(self, *args: Any, **kwargs: Any) -> None:
            """The hub's client calls it when it learns the size of another file."""
            super().refresh(*args, **kwargs)
            self._count()

        def _count(self) -> None:
            if self._counts:
                progress.done_bytes, progress.total_bytes = int(self.n), int(self.total or 0)

    return CountingBar


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _is_whole(folder: Path) -> bool:
    """Whether config, tokenizer and all weights exist. An interrupted download leaves some out."""
    try:
        files = (folder / "config.json").is_file() and has_tokenizer(folder) and bool(weight_files(folder))
    except OSError:  # unreadable
        return False
    return files and not missing_weight_files(folder)
