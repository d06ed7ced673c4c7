"""`cache`: lists, removes and checks the files of the prefix cache on disk. A server may run meanwhile."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mlx_manager.command_line.console import CommandFailed, format_bytes, format_flag, note, print_json, print_table
from mlx_manager.mlx_server.engine.disk_files import ModelFolder, ModelIdentity, PrefixFolder
from mlx_manager.mlx_server.engine.disk_format import Damaged, decode

COLUMNS = ("MODEL", "SIZE", "BLOCKS", "LAST USED", "USABLE")
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """`usable`: whether this installation can read the blocks. They depend on versions and on the model's files."""

    model: str
    size_bytes: int
    blocks: int
    last_used: float | None
    usable: bool
    folder: str


def cache(action: Literal["ls", "clear", "verify"], model: str | None, as_json: bool) -> None:
    """Raises CommandFailed for an unknown model, and for damaged files, which `verify` removes."""
    folder = PrefixFolder(_root())
    try:
        chosen = _chosen(folder, model)
        match action:
            case "ls":
                _list(folder, [_stored(path, identity) for path, identity in chosen], as_json)
            case "clear":
                stored = [_stored(path, identity) for path, identity in chosen]
                if stored:
                    folder.clear({path.name for path, _ in chosen})
                note(f"Removed {format_bytes(sum(one.size_bytes for one in stored))} from {folder.root}.")
            case "verify":
                _verify(folder, [path for path, _ in chosen])
    except OSError as exc:
        raise CommandFailed(f"{folder.root} cannot be used: {exc.strerror}. Check its permissions.") from exc


def _root() -> Path:
    from mlx_manager.mlx_server.config import mlx_server_settings as settings
    from mlx_manager.mlx_server.utils.folders import cache_folder

    folder = settings.prefix_disk_folder
    return folder if folder is not None else cache_folder("prefixes")


def _chosen(folder: PrefixFolder, model: str | None) -> list[tuple[Path, ModelIdentity | None]]:
    models = folder.models()
    if model is None:
        return models
    if model not in {identity.model for _, identity in models if identity is not None}:
        raise CommandFailed(f"{folder.root} has no prefixes of {model!r}. Run `mlx-manager cache ls` to list them.")
    return [(path, identity) for path, identity in models if identity is not None and identity.model == model]


def _stored(path: Path, identity: ModelIdentity | None) -> StoredModel:
    files = [file.stat() for file in path.glob("*.safetensors")]
    return StoredModel(
        model=identity.model if identity is not None else UNKNOWN,
        size_bytes=sum(file.st_size for file in files),
        blocks=len(files),
        last_used=max((file.st_mtime for file in files), default=None),
        usable=identity is not None and identity.is_readable,
        folder=str(path),
    )


def _list(folder: PrefixFolder, stored: list[StoredModel], as_json: bool) -> None:
    if as_json:
        print_json([asdict(one) for one in stored])
        return
    print_table(COLUMNS, [_cells(one) for one in stored])
    note(f"{format_bytes(sum(one.size_bytes for one in stored))} in {folder.root}.")


def _cells(one: StoredModel) -> Sequence[str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.last_used)) if one.last_used is not None else "-"
    return one.model, format_bytes(one.size_bytes), str(one.blocks), used, format_flag(one.usable)


def _verify(folder: PrefixFolder, paths: list[Path]) -> None:
    checked = damaged = 0
    for path in paths:
        files = ModelFolder(folder, path)
        for name in files.sizes():
            checked += 1
            if not _is_whole(path, name):
                damaged += 1
                files.remove(name)
    if damaged:
        raise CommandFailed(f"{damaged} of {checked} blocks were damaged, and are removed. Check the disk.")
    note(f"All {checked} blocks are whole.")


def _is_whole(path: Path, name: str) -> bool:
    try:
        contents = decode(name, (path / f"{name}.safetensors").read_bytes())
    except FileNotFoundError:  # the server has removed it
        return True
    except Damaged:
        return False
    return contents.salt == path.name
