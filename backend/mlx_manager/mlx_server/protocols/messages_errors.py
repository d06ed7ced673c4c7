"""Encodes errors in Anthropic's envelope, with Anthropic's error types. Pure."""

from mlx_manager.mlx_server import errors
from mlx_manager.mlx_server.protocols.base import ErrorReply, retry_after
from mlx_manager.mlx_server.protocols.errors import error_body, status_of
from mlx_manager.mlx_server.protocols.wire import JsonObject

_STATUSES: dict[type[errors.ServerError], int] = {errors.BrokenBody: 400, errors.ServerBusy: 529}
"""Statuses that differ from OpenAI's. Claude Code sends a request six times if it gets status 422."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_FIELDS = {
    "thinking_budget": "thinking.budget_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
}
"""OpenAI field names, as the services use them, and Anthropic's names."""


def anthropic_error(error: Exception, request_id: str) -> ErrorReply:
    status = next((_STATUSES[cls] for cls in type(error).__mro__ if cls in _STATUSES), status_of(error))
    wait_seconds = error.retry_after_seconds if isinstance(error, errors.ServerError) else None
    return ErrorReply(status, _envelope(status, _message(error), request_id), retry_after(wait_seconds))


def _envelope(status: int, message: str, request_id: str) -> JsonObject:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def _message(error: Exception) -> str:
    """Anthropic's envelope has no `param`, so the message begins with the field name."""
    if isinstance(error, errors.ContextLengthExceeded):
        return _too_long(error)
    if not isinstance(error, errors.ServerError):
        unexpected = error_body(error)["error"]
        assert isinstance(unexpected, dict)
        return str(unexpected["message"])
    field = _FIELDS.get(error.param, error.param) if error.param is not None else None
    return error.message if field is None or field in error.message else f"{field}: {error.message}"


def _too_long(error: errors.ContextLengthExceeded) -> str:
    """Claude Code parses both numbers to shorten the conversation."""
    if error.tokens is None or error.limit is None:
        return f"prompt is too long: {error.message}"
    return f"prompt is too long: {error.tokens} tokens > {error.limit} maximum. {error.message}"
