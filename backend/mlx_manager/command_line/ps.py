"""`ps`: shows the loaded models of the running server, their work and their memory (`GET /admin/pool`)."""

from collections.abc import Sequence
from typing import Any

from mlx_manager.command_line.connection import Server, ServerRefused, find_server
from mlx_manager.command_line.console import (
    ABSENT,
    CommandFailed,
    format_bytes,
    format_number,
    note,
    print_json,
    print_table,
)

COLUMNS = ("MODEL", "STATE", "MEMORY", "RUNNING", "WAITING", "TOK/S", "LEAVES IN", "PID")
_NOT_THERE = "unloaded"


def ps(base_url: str | None, api_key: str | None, as_json: bool) -> None:
    status = _pool_status(find_server(base_url, api_key))
    if as_json:
        print_json(status)
        return
    present = [model for model in status["models"] if model["state"] != _NOT_THERE]
    print_table(COLUMNS, [_cells(model) for model in present])
    budget = status["budget"]
    used, limit = format_bytes(budget["used_bytes"]), format_bytes(budget["limit_bytes"])
    note(f"{used} of {limit} used, {budget['models']} of at most {budget['max_models']} models.")
    for model in present:
        if model["ranks"]:
            ranks = (f"rank {rank['rank']} uses {format_bytes(rank['memory_bytes'])}" for rank in model["ranks"])
            note(f"{model['id']}: {', '.join(ranks)}.")
        if model["error"] is not None:
            note(f"{model['id']}: {model['error']}")


def _pool_status(server: Server) -> dict[str, Any]:
    try:
        status = server.get("/admin/pool")
    except ServerRefused as exc:
        if exc.status == 404:
            raise CommandFailed(
                f"The server at {server.root} has no /admin/pool, so it is not an MLX Manager. Check --base-url."
            ) from exc
        raise
    if not isinstance(status, dict) or not {"models", "budget"} <= status.keys():
        raise CommandFailed(f"{server.root}/admin/pool did not answer with a pool's state. Check --base-url.")
    return status


def _cells(model: dict[str, Any]) -> Sequence[str]:
    memory, sequences = model["memory"], model["sequences"]
    return (
        model["id"],
        _state(model),
        format_bytes(None if memory is None else memory["active_bytes"] + memory["cache_bytes"]),
        format_number(sequences["running"]),
        format_number(sequences["waiting"]),
        format_number(model["tokens_per_second"], 1),
        _leaves_in(model),
        ABSENT if model["pid"] is None else str(model["pid"]),
    )


def _state(model: dict[str, Any]) -> str:
    progress = model["progress"]
    if progress is None or not progress["total_bytes"]:
        return str(model["state"])
    return f"{progress['stage']} {100 * progress['done_bytes'] // progress['total_bytes']}%"


def _leaves_in(model: dict[str, Any]) -> str:
    """The time until the model is unloaded, if no request uses it."""
    if model["pinned"]:
        return "pinned"
    return ABSENT if model["expires_in"] is None else f"{model['expires_in']:.0f} s"
