"""Reads the memory of the machine or container. Knows nothing of models."""

import os
from collections.abc import Iterator
from pathlib import Path


def memory_bytes() -> int:
    """The memory of the machine, or the container's limit if it is smaller."""
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine_bytes, container_limit_bytes() or machine_bytes)


def container_limit_bytes(root: Path = Path("/")) -> int | None:
    """The smallest memory limit of the process's control groups (v1, v2) and their parents; None without a limit.

    A limit above the machine's memory counts as unlimited: cgroup v1 writes it so.
    """
    limits = [limit for file in _limit_files(root) if (limit := _limit(file)) is not None]
    return min(limits, default=None)


def _limit_files(root: Path) -> Iterator[Path]:
    groups = _groups(root)
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, kind = line.partition(" - ")
        mounted_part, place = (_unescaped(field) for field in fields.split()[3:5])
        file_system, *_, options = [*kind.split(), "", ""][:3]
        if file_system == "cgroup2":
            yield from _upwards(root, place, mounted_part, groups.get("", "/"), "memory.max")
        elif file_system == "cgroup" and "memory" in options.split(","):
            yield from _upwards(root, place, mounted_part, groups.get("memory", "/"), "memory.limit_in_bytes")


def _groups(root: Path) -> dict[str, str]:
    """The process's group for each controller of v1, and for v2 under the name ""."""
    groups: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        groups |= dict.fromkeys(controllers.split(","), group)
    return groups


def _upwards(root: Path, place: str, mounted_part: str, group: str, name: str) -> Iterator[Path]:
    """The limit files of the group and its parents below the mount point `place`.

    A container sees a part of the tree, and the name of its group may not begin with that part.
    """
    inside = os.path.relpath(group, mounted_part)
    top = root / place.lstrip("/")
    folder = top if inside.startswith("..") else top / inside
    for one in (folder, *folder.parents):
        yield one / name
        if one == top:
            return


def _limit(file: Path) -> int | None:
    text = "".join(_lines(file)).strip()
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(text) if text.isdigit() and int(text) < machine_bytes else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []


def _unescaped(field: str) -> str:
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
