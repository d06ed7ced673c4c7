"""Reads a model's chat templates from all files that may contain them. Does not render them."""

from pathlib import Path

from mlx_manager.mlx_server.models.defaults import read_json

DEFAULT = "default"
_CONFIGS = ("processor_config.json", "chat_template.json", "tokenizer_config.json")
"""Files that may have an entry `chat_template`; later files take precedence."""
_FILE = "chat_template.jinja"
_FOLDER = "additional_chat_templates"

TEMPLATE_FILES = (*_CONFIGS, _FILE, _FOLDER)


def read_chat_templates(folder: Path, own: Path | None = None) -> dict[str, str]:
    """The templates by name, with a default unless there are none. `own`, the user's template, replaces them all.

    transformers uses the template `tool_use` for a chat with tools.
    """
    if own is not None:
        return {DEFAULT: own.read_text("utf-8")}
    found: dict[str, str] = {}
    for name in _CONFIGS:
        found |= _named(read_json(folder / name).get("chat_template"))
    for file in sorted((folder / _FOLDER).glob("*.jinja")):
        found[file.stem] = file.read_text("utf-8", errors="replace")
    if (folder / _FILE).is_file():
        found[DEFAULT] = (folder / _FILE).read_text("utf-8", errors="replace")
    return {DEFAULT: next(iter(found.values())), **found} if found else {}


def _named(entry: object) -> dict[str, str]:
    """Reads an entry: one template, a list of named templates, or an object with names as keys."""
    if isinstance(entry, str):
        return {DEFAULT: entry}
    if isinstance(entry, list):
        entry = {one.get("name"): one.get("template") for one in entry if isinstance(one, dict)}
    templates = entry.items() if isinstance(entry, dict) else ()
    return {name: text for name, text in templates if isinstance(name, str) and isinstance(text, str)}
