"""The difference between two catalogs, for a reload of the settings. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.models.catalog import Catalog, ModelEntry

_FOLLOWED_AT_ONCE: dict[str, object] = {"pin": False, "ttl": None, "aliases": []}


@dataclass(frozen=True, slots=True)
class CatalogChanges:
    """Ids of `[[models]]` entries. Models in `to_load_again` apply their new settings at their next load."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    to_load_again: list[str]


def changes(
    before: Catalog,
    after: Catalog,
    old: Sequence[ModelSettings],
    new: Sequence[ModelSettings],
    held_ids: Iterable[str],
) -> CatalogChanges:
    """Compares the entries `old` and `new`. `held_ids` are the ids of loaded and loading models."""
    old_entries, new_entries = {entry.id: entry for entry in old}, {entry.id: entry for entry in new}
    both = [model_id for model_id in new_entries if model_id in old_entries]
    return CatalogChanges(
        added=[model_id for model_id in new_entries if model_id not in old_entries],
        removed=[model_id for model_id in old_entries if model_id not in new_entries],
        changed=[model_id for model_id in both if old_entries[model_id] != new_entries[model_id]],
        to_load_again=[
            model_id
            for model_id in held_ids
            if before.has(model_id)
            and after.has(model_id)
            and _as_loaded(before.resolve(model_id)) != _as_loaded(after.resolve(model_id))
        ],
    )


def _as_loaded(entry: ModelEntry) -> ModelEntry:
    """The entry without the settings that a loaded model applies at once."""
    settings = entry.settings if entry.settings is not None else ModelSettings(id=entry.id)
    return replace(entry, settings=settings.model_copy(update=_FOLLOWED_AT_ONCE))
