"""`models`: lists the models of the running server, else those that `serve` would offer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx_manager.command_line.connection import Server, ServerRefused, ServerUnreachable, find_server
from mlx_manager.command_line.console import (
    ABSENT,
    format_bytes,
    format_flag,
    format_number,
    note,
    print_json,
    print_table,
)

COLUMNS = ("MODEL", "KIND", "SIZE", "QUANTISATION", "CONTEXT", "TOOLS", "FITS", "LOADED")


@dataclass(frozen=True, slots=True)
class ListedModel:
    """None is unknown: the size of a model that is not downloaded, or a field that the server does not send."""

    id: str
    kind: str | None
    """`generate`, `embed` or `rerank`."""
    size_bytes: int | None
    quantization: str | None
    context_length: int | None
    tools: str | None
    """`native` if the chat template shows tools, `prompted` if the server's prompt does, else None."""
    fits: bool | None
    """Whether the model fits if it is the only one."""
    loaded: bool | None


def models(base_url: str | None, api_key: str | None, as_json: bool) -> None:
    server = find_server(base_url, api_key)
    try:
        listed = of_server(server)
    except ServerUnreachable:
        if base_url is not None:
            raise
        note(f"No server answers at {server.root}. These are the models that `mlx-manager serve` would offer.")
        listed = of_settings()
    if as_json:
        print_json([asdict(model) for model in listed])
    else:
        print_table(COLUMNS, [_cells(model) for model in listed])


def of_server(server: Server) -> list[ListedModel]:
    limit_bytes = _budget_bytes(server)
    return [
        ListedModel(
            id=model["id"],
            kind=model.get("kind"),
            size_bytes=model.get("size_bytes"),
            quantization=model.get("quantization"),
            context_length=model.get("context_length"),
            tools=_tools(model),
            fits=_fits(model.get("size_bytes"), limit_bytes),
            loaded=model.get("loaded"),
        )
        for model in server.models()
    ]


def of_settings() -> list[ListedModel]:
    """Reads the catalogue of this machine's settings. Downloads nothing."""
    from mlx_manager.mlx_server.config import mlx_server_settings as settings
    from mlx_manager.mlx_server.models.catalog import catalog_of
    from mlx_manager.mlx_server.models.facts import read_facts
    from mlx_manager.mlx_server.utils.memory import BYTES_PER_GB

    catalog = catalog_of(settings)
    catalog.refresh()
    listed = []
    for entry in catalog:
        facts = read_facts(entry)
        size_bytes = None if facts is None else facts.size_bytes
        listed.append(
            ListedModel(
                id=entry.id,
                kind=entry.kind,
                size_bytes=size_bytes,
                quantization=None if facts is None else facts.quantization,
                context_length=None if facts is None else facts.context_length,
                tools=None
                if facts is None
                else facts.capabilities.with_tool_prompt(settings.tool_prompt).tools or None,
                fits=_fits(size_bytes, int(settings.max_memory_gb * BYTES_PER_GB)),
                loaded=False,
            )
        )
    return listed


def _tools(model: Mapping[str, Any]) -> str | None:
    tools = (model.get("capabilities") or {}).get("tools")
    return tools if isinstance(tools, str) else None


def _budget_bytes(server: Server) -> int | None:
    """None if the server does not tell, or not without the admin key."""
    try:
        limit = server.get("/admin/pool")["budget"]["limit_bytes"]
    except (ServerRefused, KeyError, TypeError):
        return None
    return limit if isinstance(limit, int) else None


def _fits(size_bytes: int | None, limit_bytes: int | None) -> bool | None:
    return None if size_bytes is None or limit_bytes is None else size_bytes <= limit_bytes


def _cells(model: ListedModel) -> Sequence[str]:
    return (
        model.id,
        model.kind if model.kind is not None else ABSENT,
        format_bytes(model.size_bytes),
        model.quantization if model.quantization is not None else ABSENT,
        format_number(model.context_length),
        model.tools if model.tools is not None else ABSENT,
        format_flag(model.fits),
        format_flag(model.loaded),
    )
