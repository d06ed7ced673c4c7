"""The folder of the prefix cache's disk tier: a subfolder for each model, the budget, and the order of removal.

Several servers may share the folder: files appear whole, and a lock guards the count of its bytes. Blocks are named by
their content, so it does not matter which server writes one. All calls block. Knows no MLX.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from mlx_manager.mlx_server.engine.disk_format import FORMAT, NAME, SUFFIX

MODEL_FILE = "model.json"
LOCK_FILE = ".lock"
UNFINISHED = ".unfinished-"
UNFINISHED_SECONDS = 600.0
"""Age at which an unfinished file was left behind by a process that was killed."""
FREE_BYTES = 2**30
FREE_SHARE = 0.05
"""The disk keeps FREE_BYTES free, or this share of a small disk."""
HYSTERESIS = 0.9
"""Share of the budget that a removal leaves, so that not every write lists the folder."""
_FOLDER_NAME = re.compile(r"[0-9a-f]{32}")


class DiskFull(OSError):
    """The budget or the disk is too small. The message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The inputs of a KV cache beside its tokens. Their hash is the salt and the name of the model's subfolder."""

    model: str
    """The id of the model, for display. Not part of the salt."""
    folder: str
    adapter: str | None
    files: str
    """Hash of the names, sizes and times of the model's files."""
    layout: str
    """Types and shapes of the model's caches."""
    mlx: str
    mlx_lm: str
    format: int

    @classmethod
    def of(cls, model: str, folder: str, adapter: str | None, layout: str) -> "ModelIdentity":
        files = fingerprint(folder, adapter)
        return cls(model, folder, adapter, files, layout, version("mlx"), version("mlx-lm"), FORMAT)

    @property
    def salt(self) -> str:
        content = {name: value for name, value in asdict(self).items() if name != "model"}
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def is_readable(self) -> bool:
        """Whether this installation, with the model's present files, can use the blocks."""
        try:
            current = ModelIdentity.of(self.model, self.folder, self.adapter, self.layout)
        except OSError:
            return False
        return current == self


def fingerprint(folder: str, adapter: str | None) -> str:
    """Changes when the files of the model do. Raises OSError if the model is gone."""
    entries = []
    for place in filter(None, (folder, adapter)):
        files = [file for file in Path(place).iterdir() if file.suffix in (".safetensors", ".json", ".py")]
        entries += [(file.name, (info := file.stat()).st_size, info.st_mtime_ns) for file in sorted(files)]
    return hashlib.blake2b(repr(entries).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredFile:
    path: Path
    nbytes: int
    used_at: float
    is_readable: bool
    """Whether a model of this installation can use it."""


class PrefixFolder:
    """All models' files. `budget_bytes` holds for all of them together."""

    def __init__(self, root: Path, budget_bytes: int = 2**62) -> None:
        self.root = root
        self._budget_bytes = budget_bytes

    def open_model(self, identity: ModelIdentity) -> "ModelFolder":
        """Creates the model's subfolder. Raises OSError."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self.root / identity.salt
        folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(folder / MODEL_FILE, [json.dumps(asdict(identity)).encode()])
        return ModelFolder(self, folder)

    def models(self) -> list[tuple[Path, ModelIdentity | None]]:
        """The subfolders with their identities, None for a missing or damaged one. Ignores other folders and files."""
        try:
            folders = [entry for entry in self.root.iterdir() if _FOLDER_NAME.fullmatch(entry.name) and entry.is_dir()]
        except FileNotFoundError:
            return []
        return [(folder, _identity(folder)) for folder in sorted(folders)]

    def reserve(self, nbytes: int) -> bool:
        """Counts `nbytes` as used, and removes files for them. Returns whether any were. Raises OSError."""
        free = shutil.disk_usage(self.root)
        floor = min(FREE_BYTES, int(free.total * FREE_SHARE))
        if free.free - nbytes < floor:
            raise DiskFull(f"only {free.free // 2**20} MB are free at {self.root}. Free some disk")
        if nbytes > self._budget_bytes * HYSTERESIS:
            raise DiskFull(
                f"a block has {nbytes // 2**20} MB, and MLX_SERVER_PREFIX_DISK_GB allows "
                f"{self._budget_bytes // 2**20}. Raise it"
            )
        with self._locked() as ledger:
            used = _counted(ledger)
            is_over = used is None or used + nbytes > self._budget_bytes
            if is_over:
                used = self._remove_down_to(int(self._budget_bytes * HYSTERESIS) - nbytes)
            _count(ledger, (used or 0) + nbytes)
        return is_over

    def trim(self) -> None:
        """Removes unusable files, then the least recently used ones, until the budget holds."""
        with self._locked() as ledger:
            _count(ledger, self._remove_down_to(self._budget_bytes))

    def clear(self, salts: set[str]) -> None:
        """Removes all files of these subfolders."""
        with self._locked() as ledger:
            for folder, _ in self.models():
                if folder.name in salts:
                    shutil.rmtree(folder, ignore_errors=True)
            _count(ledger, sum(file.nbytes for file in self._files()))

    def _remove_down_to(self, nbytes: int) -> int:
        """The bytes that are left. Also removes foreign and unfinished files."""
        files = sorted(self._files(), key=lambda file: (file.is_readable, file.used_at))
        used = sum(file.nbytes for file in files)
        for file in files:
            if used <= nbytes:
                break
            file.path.unlink(missing_ok=True)
            used -= file.nbytes
        for folder, identity in self.models():
            if identity is None:
                with contextlib.suppress(OSError):  # it has other files
                    folder.rmdir()
        return used

    def _files(self) -> Iterator[StoredFile]:
        for folder, identity in self.models():
            is_readable = identity is not None and identity.is_readable
            for entry, info in _listed(folder):
                is_old = info.st_mtime < time.time() - UNFINISHED_SECONDS
                if entry.name.startswith(UNFINISHED) and not is_old:
                    yield StoredFile(Path(entry.path), info.st_size, time.time(), is_readable=True)
                elif entry.name == MODEL_FILE or _stem(entry) is not None:
                    used_at = info.st_mtime if entry.name != MODEL_FILE else time.time()
                    yield StoredFile(Path(entry.path), info.st_size, used_at, is_readable)
                else:
                    _remove(Path(entry.path))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The descriptor of the lock file, which has the count of bytes."""
        ledger = os.open(self.root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            yield ledger
        finally:
            os.close(ledger)


class ModelFolder:
    """The files of one model."""

    def __init__(self, prefixes: PrefixFolder, folder: Path) -> None:
        self.prefixes = prefixes
        self._folder = folder

    def sizes(self) -> dict[str, int]:
        """Sizes in bytes by name."""
        found = {}
        for entry, info in _listed(self._folder):
            name = _stem(entry)
            if name is not None:
                found[name] = info.st_size
        return found

    @property
    def changed_at(self) -> int:
        try:
            return self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def write(self, name: str, parts: list[bytes | memoryview], age_seconds: float) -> bool:
        """Writes a block. Returns whether others were removed for it. Raises OSError."""
        removed = self.prefixes.reserve(sum(map(len, parts)))
        path = self._path(name)
        try:
            write_whole(path, parts)
        except FileNotFoundError:  # `cache clear` has removed the folder
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_whole(path, parts)
        self._mark_used(path, age_seconds)
        return removed

    def read(self, name: str, age_seconds: float) -> bytes | None:
        """The bytes of a block, and marks it as used. None if it is gone."""
        path = self._path(name)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # perhaps the folder is read-only
            self._mark_used(path, age_seconds)
        return content

    def remove(self, name: str) -> None:
        _remove(self._path(name))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"

    @staticmethod
    def _mark_used(path: Path, age_seconds: float) -> None:
        """Later blocks of a prefix are marked as older: they are useless without the earlier ones, and go first."""
        used_at = time.time() - age_seconds
        os.utime(path, (used_at, used_at))


def write_whole(path: Path, parts: list[bytes] | list[bytes | memoryview]) -> None:
    """The file appears with its whole content or not at all. Raises OSError."""
    unfinished = path.parent / f"{UNFINISHED}{secrets.token_hex(8)}"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        _remove(unfinished)
        raise


def _identity(folder: Path) -> ModelIdentity | None:
    try:
        identity = ModelIdentity(**json.loads((folder / MODEL_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return identity if identity.salt == folder.name else None


def _listed(folder: Path) -> Iterator[tuple["os.DirEntry[str]", os.stat_result]]:
    """The regular files of a folder. Another server may remove them meanwhile."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(info.st_mode):
                    yield entry, info


def _stem(entry: "os.DirEntry[str]") -> str | None:
    """The name of the block in a file; None if it is no such file."""
    stem = entry.name.removesuffix(SUFFIX)
    return stem if stem != entry.name and NAME.fullmatch(stem) else None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _counted(ledger: int) -> int | None:
    try:
        return int(os.pread(ledger, 32, 0))
    except ValueError:
        return None


def _count(ledger: int, nbytes: int) -> None:
    os.ftruncate(ledger, 0)
    os.pwrite(ledger, str(nbytes).encode(), 0)
