"""Maps errors to HTTP status, OpenAI's error type and code, and writes OpenAI's envelope.

Other protocols use the same status and write their own envelopes.
"""

from dataclasses import dataclass

from mlx_manager.mlx_server import errors
from mlx_manager.mlx_server.protocols.wire import JsonObject


@dataclass(frozen=True, slots=True)
class ErrorKind:
    status: int
    type: str
    code: str


_KINDS: dict[type[errors.ServerError], ErrorKind] = {
    errors.InvalidRequest: ErrorKind(400, "invalid_request_error", "invalid_request"),
    errors.UnsupportedParameter: ErrorKind(400, "invalid_request_error", "unsupported_parameter"),
    errors.ChatTemplateMissing: ErrorKind(400, "invalid_request_error", "chat_template_missing"),
    errors.ChatTemplateFailed: ErrorKind(400, "invalid_request_error", "chat_template_failed"),
    errors.ContextLengthExceeded: ErrorKind(400, "invalid_request_error", "context_length_exceeded"),
    errors.PreviousResponseNotFound: ErrorKind(400, "invalid_request_error", "previous_response_not_found"),
    errors.BrokenBody: ErrorKind(422, "invalid_request_error", "validation_error"),
    errors.ModelNotFound: ErrorKind(404, "invalid_request_error", "model_not_found"),
    errors.ResponseNotFound: ErrorKind(404, "invalid_request_error", "response_not_found"),
    errors.UnknownPath: ErrorKind(404, "invalid_request_error", "not_found"),
    errors.MethodNotAllowed: ErrorKind(405, "invalid_request_error", "method_not_allowed"),
    errors.NotAuthorized: ErrorKind(401, "invalid_request_error", "invalid_api_key"),
    errors.AdminClosed: ErrorKind(403, "permission_error", "admin_closed"),
    errors.HostNotAllowed: ErrorKind(421, "invalid_request_error", "host_not_allowed"),
    errors.OriginNotAllowed: ErrorKind(403, "permission_error", "origin_not_allowed"),
    errors.RequestTooLarge: ErrorKind(413, "invalid_request_error", "request_too_large"),
    errors.RequestTooSlow: ErrorKind(408, "invalid_request_error", "request_timeout"),
    errors.UnsupportedEncoding: ErrorKind(415, "invalid_request_error", "unsupported_encoding"),
    errors.RequestRateExceeded: ErrorKind(429, "requests", "rate_limit_exceeded"),
    errors.TokenRateExceeded: ErrorKind(429, "tokens", "rate_limit_exceeded"),
    errors.NotReady: ErrorKind(503, "server_error", "not_ready"),
    errors.BadSettings: ErrorKind(400, "invalid_request_error", "bad_settings"),
    errors.ServerBusy: ErrorKind(429, "rate_limit_error", "server_busy"),
    errors.InsufficientMemory: ErrorKind(503, "server_error", "insufficient_memory"),
    errors.ModelLoadFailed: ErrorKind(503, "server_error", "model_load_failed"),
    errors.LoadingCrashed: ErrorKind(503, "server_error", "model_load_failed"),
    errors.EngineFailed: ErrorKind(500, "server_error", "engine_failed"),
    errors.UpstreamError: ErrorKind(502, "server_error", "upstream_error"),
    errors.UpstreamTimeout: ErrorKind(504, "server_error", "upstream_timeout"),
    errors.RequestTimeout: ErrorKind(504, "server_error", "request_timeout"),
}
INTERNAL_ERROR = ErrorKind(500, "server_error", "internal_error")


def status_of(error: Exception) -> int:
    return _kind(error).status


def error_body(error: Exception) -> JsonObject:
    """The envelope. The text of an unexpected exception goes only to the log."""
    kind = _kind(error)
    if isinstance(error, errors.ServerError):
        return envelope(kind, error.message, error.param)
    return envelope(kind, "The server failed on this request. Check the server log for the cause.", None)


def envelope(kind: ErrorKind, message: str, param: str | None) -> JsonObject:
    return {"error": {"message": message, "type": kind.type, "param": param, "code": kind.code}}


def _kind(error: Exception) -> ErrorKind:
    return next((_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS), INTERNAL_ERROR)
