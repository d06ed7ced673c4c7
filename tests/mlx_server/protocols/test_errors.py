import pytest

from mlx_manager.mlx_server import errors
from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.protocols.errors import ErrorKind, envelope, error_body, status_of
from mlx_manager.mlx_server.schemas.openai import ErrorResponse

TABLE: list[tuple[type[ServerError], int, str, str]] = [
    (errors.InvalidRequest, 400, "invalid_request_error", "invalid_request"),
    (errors.UnsupportedParameter, 400, "invalid_request_error", "unsupported_parameter"),
    (errors.ChatTemplateMissing, 400, "invalid_request_error", "chat_template_missing"),
    (errors.ChatTemplateFailed, 400, "invalid_request_error", "chat_template_failed"),
    (errors.ContextLengthExceeded, 400, "invalid_request_error", "context_length_exceeded"),
    (errors.BrokenBody, 422, "invalid_request_error", "validation_error"),
    (errors.PreviousResponseNotFound, 400, "invalid_request_error", "previous_response_not_found"),
    (errors.ResponseNotFound, 404, "invalid_request_error", "response_not_found"),
    (errors.UnknownPath, 404, "invalid_request_error", "not_found"),
    (errors.MethodNotAllowed, 405, "invalid_request_error", "method_not_allowed"),
    (errors.ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (errors.NotAuthorized, 401, "invalid_request_error", "invalid_api_key"),
    (errors.AdminClosed, 403, "permission_error", "admin_closed"),
    (errors.HostNotAllowed, 421, "invalid_request_error", "host_not_allowed"),
    (errors.OriginNotAllowed, 403, "permission_error", "origin_not_allowed"),
    (errors.RequestTooLarge, 413, "invalid_request_error", "request_too_large"),
    (errors.RequestTooSlow, 408, "invalid_request_error", "request_timeout"),
    (errors.UnsupportedEncoding, 415, "invalid_request_error", "unsupported_encoding"),
    (errors.RequestRateExceeded, 429, "requests", "rate_limit_exceeded"),
    (errors.TokenRateExceeded, 429, "tokens", "rate_limit_exceeded"),
    (errors.NotReady, 503, "server_error", "not_ready"),
    (errors.BadSettings, 400, "invalid_request_error", "bad_settings"),
    (errors.ServerBusy, 429, "rate_limit_error", "server_busy"),
    (errors.InsufficientMemory, 503, "server_error", "insufficient_memory"),
    (errors.ModelLoadFailed, 503, "server_error", "model_load_failed"),
    (errors.LoadingCrashed, 503, "server_error", "model_load_failed"),
    (errors.EngineFailed, 500, "server_error", "engine_failed"),
    (errors.UpstreamError, 502, "server_error", "upstream_error"),
    (errors.UpstreamTimeout, 504, "server_error", "upstream_timeout"),
    (errors.RequestTimeout, 504, "server_error", "request_timeout"),
]


def tree(root: type[ServerError]) -> set[type[ServerError]]:
    return {root}.union(*map(tree, root.__subclasses__())) if root.__module__ == errors.__name__ else set()


@pytest.mark.parametrize(("error", "status", "kind", "code"), TABLE)
def test_every_server_error_has_its_status_type_and_code(
    error: type[ServerError], status: int, kind: str, code: str
) -> None:
    failure = error("Wrong: 7. Give 8.", param="n")
    assert status_of(failure) == status
    assert error_body(failure) == {"error": {"message": "Wrong: 7. Give 8.", "type": kind, "param": "n", "code": code}}


def test_no_server_error_is_missing_in_the_table() -> None:
    assert tree(ServerError) - {ServerError} == {row[0] for row in TABLE}


def test_the_errors_docstring_draws_the_whole_tree() -> None:
    assert [error.__name__ for error in tree(ServerError) if error.__name__ not in (errors.__doc__ or "")] == []


def test_a_more_special_error_answers_as_its_nearest_ancestor() -> None:
    class ContextTooLong(errors.InvalidRequest):
        pass

    assert status_of(ContextTooLong("too long")) == 400


@pytest.mark.parametrize(
    "failure", [KeyError("a secret"), RuntimeError("a secret"), ExceptionGroup("a secret", [OSError()])]
)
def test_an_unexpected_exception_is_an_internal_error_that_tells_nothing(failure: Exception) -> None:
    body = ErrorResponse.model_validate(error_body(failure))
    assert status_of(failure) == 500
    assert (body.error.type, body.error.code, body.error.param) == ("server_error", "internal_error", None)
    assert "a secret" not in body.error.message


@pytest.mark.parametrize("error", [row[0] for row in TABLE])
def test_every_body_is_openais_envelope_with_all_four_fields(error: type[ServerError]) -> None:
    body = error_body(error("message"))
    ErrorResponse.model_validate(body)
    assert body == {"error": {**dict(ErrorResponse.model_validate(body).error)}}


def test_an_envelope_can_be_written_for_a_kind_of_ones_own() -> None:
    kind = ErrorKind(405, "invalid_request_error", "method_not_allowed")
    assert envelope(kind, "No.", None) == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": "method_not_allowed"}
    }
