"""Reads the error objects that servers send instead of an answer, or in mid-stream. Knows no HTTP."""

import json

_CONTEXT_CODES = {"context_length_exceeded", "exceed_context_size_error"}
_STATUSES = {str(status) for status in range(400, 600)}


class UpstreamFailure(Exception):
    """The upstream sent an error in a reply with a success status. `error` is the error object."""

    def __init__(self, error: object) -> None:
        super().__init__(error)
        self.error = error


def error_object(content: bytes) -> object:
    """The error object of the reply, else the reply."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        return content.decode(errors="replace").strip()
    if not isinstance(reply, dict):
        return reply
    choices = reply.get("choices")
    holders = [reply, *(choice for choice in choices if isinstance(choice, dict))] if choices else [reply]
    found = next((holder["error"] for holder in holders if is_error(holder.get("error"))), None)
    return found if found is not None else reply


def is_error(error: object) -> bool:
    """Whether it is an error: for success, servers write null, false, true, "" or {}."""
    return bool(error) and error is not True


def error_message(error: object) -> str:
    if isinstance(error, dict):
        message = next((error[name] for name in ("message", "detail", "error", "msg") if error.get(name)), error)
        return message if isinstance(message, str) else str(message)
    return str(error)


def error_param(error: object) -> str | None:
    param = error.get("param") if isinstance(error, dict) else None
    return param if isinstance(param, str) else None


def error_status(error: object) -> int | None:
    """The HTTP status that the error object or its code stands for."""
    if is_context_error(error):
        return 400
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return int(code) if code in _STATUSES else None


def is_context_error(error: object) -> bool:
    return isinstance(error, dict) and not _CONTEXT_CODES.isdisjoint((str(error.get("code")), str(error.get("type"))))
