"""The folder for files that the server can make again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/mlx-manager/<name>`, by default below `~/.cache`. It may not exist."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "mlx-manager" / name
