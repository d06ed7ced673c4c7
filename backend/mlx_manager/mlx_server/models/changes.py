"""What one catalogue has that another has not, for those who reload settings. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mlx_manager.mlx_server.config import ModelSettings
from mlx_manager.mlx_server.models.catalog import Catalog, ModelEntry

_FOLLOWED_AT_ONCE: dict[str, object] = {"pin": False, "ttl": None, "aliases": []}


@dataclass(frozen=True, slots=True)
class CatalogChanges:
    """Ids of `[[models]]` entries; `to_load_again` are those of loaded models that serve as they are until then."""

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
    """From the entries `old` to `new`. `held_ids` are those of models that are loaded, or being loaded."""
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
    """Without what a loaded model follows at once."""
    settings = entry.settings if entry.settings is not None else ModelSettings(id=entry.id)
    return replace(entry, settings=settings.model_copy(update=_FOLLOWED_AT_ONCE))
