"""Chat templates that mlx-lm brings as Python code, such as DeepSeek V3.2's. Runs in the rendering process only.

mlx-lm's package imports MLX, and such a template imports transformers for a function that turns Python functions into
schemas. Neither is needed to write a prompt, so the template's file is loaded by itself.
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
    """The text of the prompt. Raises ValueError for a template that mlx-lm does not have, else what its code raises."""
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
        raise ValueError(f"mlx-lm has no chat template {name!r}, which the model's chat_template_type names")
    _stub_transformers()
    spec = importlib.util.spec_from_file_location(f"mlx_lm_chat_template_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "apply_chat_template"):
        raise ValueError(f"mlx-lm's chat template {name!r} writes no prompts")
    return module


def _stub_transformers() -> None:
    for name in ("transformers", "transformers.utils", _HELPERS):
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules[_HELPERS].get_json_schema = None  # type: ignore[attr-defined]  # tools arrive as JSON, never as functions
