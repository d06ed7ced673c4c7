"""The catalog of loadable models: their ids, aliases and folders. Loads nothing into memory.

Ids from requests are looked up and never opened as paths. Where two models share an id, the first source wins: the
default model, `[[models]]` entries, the demo, available_models, `models_dir`, the Hugging Face cache.
"""

import difflib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_manager.demo import DEMO_MODEL_ID, demo_model_path
from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.errors import ModelNotFound
from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.model_settings import ModelSettings, why_no_folder
from mlx_manager.mlx_server.models.defaults import read_json
from mlx_manager.mlx_server.models.fitness import why_it_cannot_load
from mlx_manager.mlx_server.models.hub import Progress, cache_folder, cached_folder, cached_repos, download, is_repo_id
from mlx_manager.mlx_server.models.kinds import kind_of
from mlx_manager.mlx_server.rank_settings import RankSettings
from mlx_manager.utf8 import is_utf8, shown

logger = logging.getLogger(__name__)

SCAN_SECONDS = 2.0
"""The shortest time between two scans of the folders."""
_DEFAULT_REMEDY = "Set demo, a Hugging Face repo id, a model's folder, or the id of a [[models]] entry."


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A loadable model. `folder` is None for a model of the Hugging Face hub, where it has the id `repo` or `id`."""

    id: str
    folder: Path | None
    repo: str | None = None
    settings: ModelSettings | None = None
    """Its `[[models]]` entry."""
    own_ranks: RankSettings | None = None
    """Overrides the ranks of its entry."""

    @property
    def ranks(self) -> RankSettings | None:
        """None for a model that runs in one process."""
        ranks = self.own_ranks if self.own_ranks is not None else self.settings
        return ranks if ranks is not None and ranks.is_group else None

    @property
    def repo_id(self) -> str:
        return self.repo if self.repo is not None else self.id

    @property
    def revision(self) -> str | None:
        return self.settings.revision if self.settings is not None else None

    @property
    def aliases(self) -> list[str]:
        return self.settings.aliases if self.settings is not None else []

    def ttl_seconds(self, otherwise: float) -> float:
        """How long the model stays loaded when it is idle. Negative means for ever."""
        ttl = self.settings.ttl if self.settings is not None else None
        return ttl if ttl is not None else otherwise

    @property
    def trust_remote_code(self) -> bool:
        return self.settings is not None and self.settings.trust_remote_code

    @property
    def dequantize(self) -> bool:
        return self.settings is not None and self.settings.dequantize

    @property
    def prefix_disk(self) -> bool:
        return self.settings is None or self.settings.prefix_disk

    @property
    def adapter(self) -> Path | None:
        return self.settings.adapter if self.settings is not None else None

    @property
    def kind(self) -> ModelKind | None:
        """None for a model that is not on this machine and whose entry sets no kind. Reads files."""
        folder = self.local_folder()
        if folder is None:
            return self.settings.kind if self.settings is not None else None
        return self.kind_in(folder)

    def kind_in(self, folder: Path) -> ModelKind:
        """The kind that its entry sets, else the kind found in the files of the folder."""
        configured = self.settings.kind if self.settings is not None else None
        return configured if configured is not None else kind_of(folder, self.repo_id)

    def local_folder(self) -> Path | None:
        """Its folder on this machine. None for a model that has to be downloaded first."""
        return self.folder if self.folder is not None else cached_folder(self.repo_id, self.revision)


class Catalog:
    """The loadable models. `resolve` and iteration see the models that the last `refresh` found."""

    def __init__(
        self,
        default_model: str,
        available_models: Iterable[str],
        *,
        models: Sequence[ModelSettings] = (),
        models_dir: Path | None = None,
        hub_cache: bool = False,
        allow_downloads: bool = False,
        default_for_unknown: bool = False,
        default_ranks: RankSettings | None = None,
    ) -> None:
        """`default_ranks` are the ranks of the default model."""
        self._named: dict[str, ModelEntry] = {}
        self._found: dict[str, ModelEntry] = {}
        self._aliases: dict[str, str] = {}
        self._configured = {name: model for model in models for name in (model.id, *model.aliases)}
        self._models_dir = models_dir
        self._hub_cache = hub_cache
        self._allow_downloads = allow_downloads
        self._default_for_unknown = default_for_unknown
        self._scanned_at = -SCAN_SECONDS
        self._warned: set[str] = set()
        self._loadable: dict[Path, bool] = {}
        for name in (default_model, *(model.id for model in models), DEMO_MODEL_ID, *available_models):
            if name.strip():
                self._add(name)
        self.refresh()
        default = self.find(default_model)
        if default is None:
            raise self._not_found(default_model, ())
        self.default_id = default.id
        if default_ranks is not None:
            self._named[default.id] = replace(default, own_ranks=default_ranks)

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter([*self._named.values(), *self._found.values()])

    def knows(self, name: str) -> bool:
        """Whether the name is the id or an alias of a known model."""
        return self.find(name) is not None

    def find(self, name: str) -> ModelEntry | None:
        """The entry with that id or alias."""
        model_id = self._aliases.get(name, name)
        return self._named.get(model_id, self._found.get(model_id))

    def resolve(self, name: str, other_ids: Iterable[str] = ()) -> ModelEntry:
        """The entry with that id or alias. `allow_downloads` and `default_for_unknown` decide about unknown names.

        Raises ModelNotFound, which suggests ids. `other_ids` are the ids of upstream models.
        """
        entry = self._entry_for(name)
        if entry is None:
            raise self._not_found(name, other_ids)
        return entry

    def has(self, model_id: str) -> bool:
        """Whether `resolve` returns the model with exactly this id."""
        entry = self._entry_for(model_id)
        return entry is not None and entry.id == model_id

    def pinned(self) -> set[str]:
        """Ids of the models that the settings pin."""
        return {entry.id for entry in self if entry.settings is not None and entry.settings.pin}

    def ttl_seconds(self, model_id: str, otherwise: float) -> float:
        entry = self.find(model_id)
        return entry.ttl_seconds(otherwise) if entry is not None else otherwise

    def refresh(self) -> None:
        """Scans `models_dir` and the cache for added and removed models. Reads files: call it in a thread."""
        if time.monotonic() - self._scanned_at < SCAN_SECONDS:
            return
        self._scanned_at = time.monotonic()
        found: dict[str, ModelEntry] = {}
        for entry in [*self._in_models_dir(), *self._in_hub_cache()]:
            if entry.id not in self._named and entry.id not in self._aliases:
                found.setdefault(entry.id, entry)
        self._found = found  # in one assignment, because the event loop reads it

    def _entry_for(self, name: str) -> ModelEntry | None:
        entry = self.find(name)
        if entry is None and self._allow_downloads and is_repo_id(name):
            return ModelEntry(name, None)
        return self._named[self.default_id] if entry is None and self._default_for_unknown else entry

    def _not_found(self, name: str, other_ids: Iterable[str]) -> ModelNotFound:
        known = [*(entry.id for entry in self), *other_ids]
        near = difflib.get_close_matches(name[:200], [*known, *self._aliases], n=3, cutoff=0.5) or known
        return ModelNotFound(
            f"The model {name[:200]!r} does not exist or may not be loaded. Did you mean: {', '.join(near)}? "
            "Add it to MLX_SERVER_AVAILABLE_MODELS or to mlx-manager.toml to make it loadable, or map "
            "the name to a model under [aliases] there.",
            param="model",
        )

    def _add(self, name: str) -> None:
        """Adds a model, unless its id is taken. A folder's name is its id, and the path as typed is an alias."""
        settings = self._configured.get(name)
        if settings is not None:
            self._add_configured(settings)
            return
        folder = demo_model_path() if name == DEMO_MODEL_ID else Path(os.path.expanduser(name))
        if not self._is_utf8(Path(name)):
            return
        if not os.path.isdir(folder):  # Path.is_dir raises where a folder above may not be read
            self._named.setdefault(name, ModelEntry(name, None))
            return
        folder = folder.resolve()
        if not self._is_utf8(folder):
            return
        entry = ModelEntry(DEMO_MODEL_ID if name == DEMO_MODEL_ID else folder.name, folder)
        if self._named.setdefault(entry.id, entry) != entry:
            logger.warning("Two models have the id %s; %s is not served. Rename one folder.", entry.id, folder)
        elif name != entry.id:
            self._aliases[name] = entry.id

    def _add_configured(self, settings: ModelSettings) -> None:
        folder = settings.path
        if folder is None and settings.repo is None and settings.id == DEMO_MODEL_ID:
            folder = demo_model_path()
        if folder is None and settings.repo is None and self._models_dir is not None:
            folder = _inside(self._models_dir, self._models_dir / settings.id)
        entry = ModelEntry(settings.id, folder.resolve() if folder is not None else None, settings.repo, settings)
        if self._named.setdefault(entry.id, entry) == entry:
            self._aliases.update(dict.fromkeys(settings.aliases, entry.id))

    def _in_models_dir(self) -> Iterator[ModelEntry]:
        """Folders with a config, at the first or second level. Skips folders whose links lead out of `models_dir`."""
        if self._models_dir is None:
            return
        first_level = list(self._models_dir.glob("*/config.json"))
        models = {config.parent for config in first_level}
        second_level = [path for path in self._models_dir.glob("*/*/config.json") if path.parent.parent not in models]
        for config in sorted([*first_level, *second_level]):
            model_id = config.parent.relative_to(self._models_dir).as_posix()
            folder = _inside(self._models_dir, config.parent)
            if not self._is_utf8(folder if folder is not None else config.parent):
                continue
            if folder is None:
                self._warn_once(
                    f"{config.parent} is not served: it is unreadable or links out of models_dir. Copy it there."
                )
            else:
                yield ModelEntry(model_id, folder)

    def _in_hub_cache(self) -> Iterator[ModelEntry]:
        """Complete models of the cache that mlx-lm can load."""
        for repo_id in cached_repos() if self._hub_cache else ():
            folder = cached_folder(repo_id) if self._is_utf8(cache_folder() / repo_id) else None
            if folder is not None and self._can_load(folder):
                yield ModelEntry(repo_id, folder)

    def _can_load(self, snapshot: Path) -> bool:
        """Whether mlx-lm can load a complete snapshot. Cached, because a complete snapshot does not change."""
        if snapshot not in self._loadable:
            self._loadable[snapshot] = why_it_cannot_load(snapshot, kind=kind_of(snapshot)) is None
        return self._loadable[snapshot]

    def _is_utf8(self, folder: Path) -> bool:
        """Whether the path is UTF-8, which JSON and the libraries that read models need. Warns once otherwise."""
        if is_utf8(folder):
            return True
        self._warn_once(f"{shown(str(folder))} is not served: its name is not UTF-8. Rename it.")
        return False

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s", message)


async def locate(entry: ModelEntry, progress: Progress | None = None) -> Path:
    """The model's folder, downloaded from the hub if it is not in the cache. Raises ModelLoadFailed."""
    folder = entry.local_folder()
    if folder is not None:
        return folder
    return await download(entry.repo_id, entry.revision, progress if progress is not None else Progress())


def catalog_of(settings: MLXServerSettings) -> Catalog:
    """The catalog for the settings. It scans the folders that they name."""
    return Catalog(
        settings.default_model,
        settings.available_models,
        models=settings.models,
        models_dir=settings.models_dir,
        hub_cache=settings.hub_cache,
        allow_downloads=settings.allow_downloads,
        default_for_unknown=settings.default_for_unknown,
        default_ranks=settings.default_ranks,
    )


def why_default_is_missing(catalog: Catalog) -> str | None:
    """Why the default model can never be loaded. None for a model that may be loadable or downloadable.

    Does not check the weights: the user can repair them while the server runs.
    """
    entry = catalog.resolve(catalog.default_id)
    if entry.folder is None:
        return None if is_repo_id(entry.repo_id) and not os.path.exists(entry.id) else _why_no_model(entry)
    fault = why_no_folder(entry.folder)
    if fault is None and not os.path.exists(entry.folder / "config.json"):
        fault = f"{entry.folder} has no config.json"
    if fault is None and not read_json(entry.folder / "config.json"):
        fault = f"{entry.folder / 'config.json'} is not a JSON object"
    return f"Bad setting default_model: {fault}. {_DEFAULT_REMEDY}" if fault is not None else None


def _why_no_model(entry: ModelEntry) -> str:
    fault = why_no_folder(entry.id) if os.path.exists(entry.id) else f"model {entry.id!r} does not exist"
    return f"Bad setting default_model: {fault}. {_DEFAULT_REMEDY}"


def _inside(parent: Path, folder: Path) -> Path | None:
    """The folder with links resolved, if it and its files lie in `parent`."""
    root, real = parent.resolve(), folder.resolve()
    try:
        is_inside = all(path.resolve().is_relative_to(root) for path in (real, *real.iterdir()))
    except OSError:  # not a folder, or unreadable
        return None
    return real if is_inside else None
