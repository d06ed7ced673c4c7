"""`pull`: downloads a model from the Hugging Face hub into the local cache, where `serve` finds it."""

import contextlib
import fcntl
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mlx_manager.command_line.console import CommandFailed, note
from mlx_manager.proxies import forget_proxies, is_this_machine, unusable

REACH_SECONDS = 15
EXAMPLE = "mlx-community/Llama-3.2-3B-Instruct-4bit"


def pull(repo: str, revision: str | None) -> None:
    """Prints the folder. Continues broken connections, and does not repeat files of an earlier pull."""
    import httpx2  # the hub client's errors
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = _download(repo, revision)
    except HFValidationError as exc:
        raise CommandFailed(f"{repo!r} is not a Hugging Face repo id. Use one like {EXAMPLE}.") from exc
    except GatedRepoError as exc:
        raise CommandFailed(
            f"You must accept the terms of {repo} at {constants.ENDPOINT}/{repo}. Then run `hf auth login`, or set "
            "HF_TOKEN."
        ) from exc
    except RepositoryNotFoundError as exc:
        raise CommandFailed(
            f"The hub shows you no {repo}. Check the name at {constants.ENDPOINT}/models, or run `hf auth login` for a "
            "private one."
        ) from exc
    except RevisionNotFoundError as exc:
        raise CommandFailed(f"{repo} has no revision {revision!r}: omit --revision for the newest.") from exc
    except HfHubHTTPError as exc:
        raise CommandFailed(
            f"The hub at {constants.ENDPOINT} refused: {str(exc).splitlines()[0]}. Check the name and your access."
        ) from exc
    except (ImportError, ValueError, httpx2.InvalidURL) as exc:  # what makes the hub's client
        raise CommandFailed(str(unusable(exc))) from exc
    except (httpx2.HTTPError, OSError) as exc:
        raise CommandFailed(
            f"The hub at {constants.ENDPOINT} cannot be reached, or closed the connection: "
            f"{str(exc) or type(exc).__name__}. Retry later. Complete files are not downloaded again."
        ) from exc
    note(f"{repo} is here. Serve it: mlx-manager serve {repo}")
    print(folder)


def _download(repo: str, revision: str | None) -> Path:
    """Contacts the hub first. Otherwise `snapshot_download` silently returns an old copy."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from mlx_manager.mlx_server.models.hub import HUB_PATTERNS

    if is_this_machine(constants.ENDPOINT):
        forget_proxies()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    signal.signal(signal.SIGINT, _stop)
    HfApi().model_info(repo, revision=revision, timeout=REACH_SECONDS)
    if sys.stderr.isatty():
        note(f"Fetching {repo}; Ctrl-C stops it.")
    elif constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    folder = snapshot_download(repo, revision=revision, allow_patterns=HUB_PATTERNS)
    gc.collect()  # the progress bars write their last lines now, before ours
    return Path(folder)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Exits at once. A normal exit would wait for the download threads to complete their files."""
    for file in _own_partial_files():
        file.unlink(missing_ok=True)
    os.write(sys.stderr.fileno(), b"\nStopped. What is complete stays; the next pull fetches the rest.\n")
    os._exit(128 + number)


def _own_partial_files() -> list[Path]:
    """Removes the incomplete files that this process has open. Other pulls may have files beside them."""
    paths = []
    for descriptor in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            paths.append(_path_of(descriptor))
    return [path for path in paths if path.name.endswith(".incomplete")]


def _path_of(descriptor: int) -> Path:
    if sys.platform == "darwin":
        return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
