import pytest

from mlx_manager.mlx_server import errors
from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.protocols.messages import Messages


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidRequest, 400, "invalid_request_error"),
        (errors.UnsupportedParameter, 400, "invalid_request_error"),
        (errors.BrokenBody, 400, "invalid_request_error"),
        (errors.NotAuthorized, 401, "authentication_error"),
        (errors.OriginNotAllowed, 403, "permission_error"),
        (errors.ModelNotFound, 404, "not_found_error"),
        (errors.UnknownPath, 404, "not_found_error"),
        (errors.MethodNotAllowed, 405, "invalid_request_error"),
        (errors.RequestTooLarge, 413, "request_too_large"),
        (errors.RequestRateExceeded, 429, "rate_limit_error"),
        (errors.TokenRateExceeded, 429, "rate_limit_error"),
        (errors.EngineFailed, 500, "api_error"),
        (errors.NotReady, 503, "api_error"),
        (errors.RequestTimeout, 504, "timeout_error"),
        (errors.UpstreamTimeout, 504, "timeout_error"),
        (errors.ServerBusy, 529, "overloaded_error"),
    ],
)
def test_errors_have_the_statuses_and_types_of_anthropic(error: type[ServerError], status: int, kind: str) -> None:
    reply = Messages().error(error("Wrong: 7. Give 8.", param="stop_sequences"), "req-1")
    assert (reply.status, reply.body) == (
        status,
        {
            "type": "error",
            "error": {"type": kind, "message": "stop_sequences: Wrong: 7. Give 8."},
            "request_id": "req-1",
        },
    )


def test_how_long_to_wait_is_a_header() -> None:
    assert Messages().error(errors.ServerBusy("Full.", retry_after_seconds=3), "").headers == {"Retry-After": "3"}
    assert Messages().error(errors.EngineFailed("Dead."), "").headers == {}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.ContextLengthExceeded("Shorten it.", tokens=9, limit=8), "prompt is too long: 9 tokens > 8 maximum. "),
        (errors.ContextLengthExceeded("Too many."), "prompt is too long: Too many."),
        (
            errors.UnsupportedParameter("Leave it out.", param="thinking_budget"),
            "thinking.budget_tokens: Leave it out.",
        ),
        (KeyError("a secret"), "The server failed on this request. Check the server log for the cause."),
    ],
)
def test_messages_name_what_the_client_can_act_on(error: Exception, message: str) -> None:
    body = Messages().error(error, "").body["error"]
    assert isinstance(body, dict)
    assert str(body["message"]).startswith(message)
