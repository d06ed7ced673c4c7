"""Writes docs/settings.md from the settings' own descriptions: `python scripts/settings_page.py`."""

import ast
import inspect
import json
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mlx_manager.mlx_server import bounds, config

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
INTRODUCTION = """\
# Settings

Every setting is an environment variable, `MLX_SERVER_` and the name in upper case, and a key of `mlx-manager.toml`. The
command line overrides the environment, which overrides the file. `MLX_SERVER_CONFIG` sets the path of the file. The
server logs a warning for an unknown `MLX_SERVER_*` variable, and does not start with an unknown key in the file.

`scripts/settings_page.py` writes this page from the code. Reload (SIGHUP) applies some settings to the running server:
[operations.md](operations.md#reload).
"""
BOUNDS = """\
## Fixed limits

| limit | value | reason |
|---|---|---|
"""


def page() -> str:
    return INTRODUCTION + "".join(map(_section, config.GROUPS)) + "\n" + BOUNDS + "".join(_bounds())


def _section(group: type[BaseModel]) -> str:
    rows = [_row(name, field) for name, field in group.model_fields.items()]
    return f"\n## {group.__doc__}\n\n| setting | default | meaning |\n|---|---|---|\n" + "".join(rows)


def _row(name: str, field: FieldInfo) -> str:
    assert field.description is not None, name
    return f"| `{name}` | {_default(field)} | {_line(field.description)} |\n"


def _default(field: FieldInfo) -> str:
    """The default; those computed at start are in the description."""
    value = field.get_default()
    if field.default_factory is not None:
        return "of the machine"
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, list):
        return f"`{','.join(value)}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _bounds() -> list[str]:
    """The fields of `Bounds` with their docstrings."""
    values = bounds.Bounds()
    (made,) = [node for node in ast.parse(inspect.getsource(bounds)).body if isinstance(node, ast.ClassDef)]
    rows = []
    for field, reason in zip(made.body, made.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(reason, ast.Expr), field.target.id
            name, text = field.target.id, ast.literal_eval(reason.value)
            rows.append(f"| `{name}` | {getattr(values, name):,} | {_line(text)} |\n")
    return rows


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
