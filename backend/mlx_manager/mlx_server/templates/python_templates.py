"""Renders mlx-lm's Python chat templates, such as DeepSeek V3.2's. Runs in the rendering process only.

Loads the template's file on its own, because the package mlx_lm imports MLX, and such a template imports transformers
only for a function that converts Python functions to schemas.
"""

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

_HELPERS = "transformers.utils.chat_template_utils"


def render(
    name: str,
    messages: list[dict[str, Any]],
    *,
    tools: list[dict[str, Any]] | None,
    documents: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
    continue_final_message: bool | str,
    variables: dict[str, Any],
) -> str:
    """The text of the prompt. Raises ValueError for an unknown template, and any exception of the template's code."""
    optional = {"tools": tools, "documents": documents}
    text = _template(name).apply_chat_template(
        messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=bool(continue_final_message),
        **{key: value for key, value in optional.items() if value is not None},
        **variables,
    )
    return str(text)


@lru_cache
def _template(name: str) -> Any:
    package = importlib.util.find_spec("mlx_lm")
    places = package.submodule_search_locations if package is not None else None
    file = Path(places[0]) / "chat_templates" / f"{name}.py" if places and name.isidentifier() else None
    if file is None or not file.is_file():
        raise ValueError(f"mlx-lm has no chat template {name!r}, the model's chat_template_type. Update mlx-lm.")
    _stub_transformers()
    spec = importlib.util.spec_from_file_location(f"mlx_lm_chat_template_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "apply_chat_template"):
        raise ValueError(f"mlx-lm's chat template {name!r} has no apply_chat_template. Update mlx-lm.")
    return module


def _stub_transformers() -> None:
    for name in ("transformers", "transformers.utils", _HELPERS):
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules[_HELPERS].get_json_schema = None  # type: ignore[attr-defined]  # tools are JSON here, never functions
