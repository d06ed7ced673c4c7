"""Configuration files of other programs: merged, shown as a diff, and written beside a backup of what was there."""

import difflib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_manager.command_line.clients import PROVIDER, ConfigFile, JsonFile, YamlItem
from mlx_manager.command_line.console import CommandFailed

_MARK = f"  # written by {PROVIDER} launch"


@dataclass(frozen=True, slots=True)
class Change:
    """`before` is None where there is no file. The texts may hold a key."""

    path: Path
    before: str | None = field(repr=False)
    after: str = field(repr=False)
    backed_up: bool

    @property
    def diff(self) -> str:
        """As `diff -u` shows it; empty without a change."""
        lines = ((self.before or "").splitlines(), self.after.splitlines())
        return "\n".join(difflib.unified_diff(*lines, str(self.path), str(self.path), lineterm=""))

    def write(self) -> Path | None:
        """Writes the file, readable only by its owner; returns the backup, if any. Raises CommandFailed."""
        try:
            return self._write()
        except OSError as exc:
            raise CommandFailed(f"Cannot write {self.path}: {exc.strerror}. Check who owns the folder.") from exc

    def _write(self) -> Path | None:
        target = self.path.resolve()  # where it is a link, into somebody's dotfiles
        target.parent.mkdir(parents=True, exist_ok=True)
        backup = None
        if self.before is not None and self.backed_up:
            backup = target.with_name(f"{target.name}.{time.strftime('%Y%m%d-%H%M%S')}.bak")
            shutil.copy2(target, backup)
        draft = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            out.write(self.after)
        if backup is not None:
            shutil.copymode(backup, draft)
        draft.replace(target)
        return backup


def change_of(file: ConfigFile) -> Change:
    """The change that gives the file its settings. Raises CommandFailed if the file cannot be read."""
    before = _read(file.path)
    if isinstance(file, YamlItem):
        return Change(file.path, before, _with_item(file, before or ""), backed_up=True)
    content = file.content if before is None or file.ours else _merged(_parsed(file, before), file.content)
    if before is not None and not file.ours and content == _parsed(file, before):
        return Change(file.path, before, before, backed_up=True)
    return Change(file.path, before, json.dumps(content, indent=2, ensure_ascii=False) + "\n", not file.ours)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as exc:
        raise CommandFailed(f"Cannot read {path}: {exc}. Repair the file, or see what it needs with --print.") from exc


def _parsed(file: JsonFile, text: str) -> dict[str, object]:
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError as exc:
        raise CommandFailed(
            f"{file.path} is not plain JSON ({exc}), so that launch cannot merge into it without losing its comments. "
            f"Add this by hand: {json.dumps(file.content, ensure_ascii=False)}."
        ) from exc
    if not isinstance(value, dict):
        raise CommandFailed(f"{file.path} holds no JSON object. Repair or remove the file.")
    return value


def _merged(old: object, new: object) -> object:
    """Objects are merged by key, and lists of objects by their `id` or `name`; anything else is replaced."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _merged(old[key], value) if key in old else value for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        names = {_name(item) for item in new}
        return [*(item for item in old if _name(item) not in names), *new]
    return new


def _name(item: object) -> object:
    if not isinstance(item, Mapping):
        return repr(item)
    return (item.get("id", item.get("name")), item.get("baseUrl"))


def _with_item(file: YamlItem, text: str) -> str:
    lines = text.splitlines()
    first = next((line for line in lines if line.strip() and not line.startswith(("#", "---"))), "-")
    if not first.startswith("-"):
        raise CommandFailed(
            f"{file.path} is not a list of YAML items that begin with '- '. Add one by hand: {file.item}."
        )
    return "\n".join([*_without_item(lines, file.item), f"- {json.dumps(file.item, ensure_ascii=False)}{_MARK}"]) + "\n"


def _without_item(lines: Sequence[str], item: Mapping[str, object]) -> list[str]:
    """Without the line that an earlier launch wrote for the same model."""
    begin = "- " + json.dumps({"model_id": item["model_id"]}, ensure_ascii=False)[:-1]
    return [line for line in lines if not (line.startswith(f"{begin},") and line.endswith(_MARK))]
