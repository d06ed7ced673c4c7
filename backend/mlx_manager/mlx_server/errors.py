"""The exceptions of failed requests. They know no HTTP: `protocols/errors.py` maps them to statuses.

ServerError
├── InvalidRequest             the request cannot be served as it is
│   ├── UnsupportedParameter   the server does not support a parameter or content
│   ├── ChatTemplateMissing    a chat request for a model without a chat template
│   ├── ChatTemplateFailed     the model's chat template used too much time or memory
│   ├── ContextLengthExceeded  prompt and answer exceed the model's context
│   ├── PreviousResponseNotFound  the response named by previous_response_id is not stored
│   └── BrokenBody             the body is not JSON, or violates the endpoint's schema
├── ModelNotFound              no loadable model has this id
├── ResponseNotFound           no stored response has this id
├── UnknownPath                no endpoint has this path
├── MethodNotAllowed           the endpoint does not support this method
├── NotAuthorized              the API key is missing or wrong
├── AdminClosed                the admin endpoints need an admin key, and none is set
├── HostNotAllowed             the Host header is not a name of this server
├── OriginNotAllowed           the request comes from a web page that the settings do not allow
├── RequestTooLarge            the body exceeds the size limit
├── RequestTooSlow             the body did not arrive in time
├── UnsupportedEncoding        the body is compressed
├── RequestRateExceeded        the key exceeded its requests per minute
├── TokenRateExceeded          the key exceeded its tokens per minute
├── NotReady                   the server starts, shuts down, or restarts a crashed worker
├── BadSettings                the settings to reload are invalid
├── ServerBusy                 the queue is full
├── InsufficientMemory         the model does not fit into memory beside the models in use
├── ModelLoadFailed            the weights or the tokenizer could not be loaded
│   └── LoadingCrashed         the worker process was killed during the load; a retry may succeed
├── EngineFailed               the worker process died or failed during the request
├── UpstreamError              the upstream server is unreachable, failed, or sent an invalid answer
│   └── UpstreamTimeout        the upstream server sent nothing within its timeout
└── RequestTimeout             the request exceeded the server's time limit
"""

from mlx_manager.utf8 import shown


class ServerError(Exception):
    """The message says what was wrong, with the value, and what to do. `param` is the request field at fault, if any.

    `retry_after_seconds` is how long the client should wait before a retry, where that is known.
    """

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.message = shown(message)
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(ServerError):
    pass


class UnsupportedParameter(InvalidRequest):
    pass


class ChatTemplateMissing(InvalidRequest):
    pass


class ChatTemplateFailed(InvalidRequest):
    pass


class ContextLengthExceeded(InvalidRequest):
    """`tokens` counts the prompt, and `limit` is the largest prompt, where both are known."""

    def __init__(
        self, message: str, *, param: str | None = None, tokens: int | None = None, limit: int | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.tokens = tokens
        self.limit = limit


class PreviousResponseNotFound(InvalidRequest):
    pass


class BrokenBody(InvalidRequest):
    pass


class ModelNotFound(ServerError):
    pass


class ResponseNotFound(ServerError):
    pass


class UnknownPath(ServerError):
    pass


class MethodNotAllowed(ServerError):
    pass


class NotAuthorized(ServerError):
    pass


class AdminClosed(ServerError):
    pass


class HostNotAllowed(ServerError):
    pass


class OriginNotAllowed(ServerError):
    pass


class RequestTooLarge(ServerError):
    pass


class RequestTooSlow(ServerError):
    pass


class UnsupportedEncoding(ServerError):
    pass


class RequestRateExceeded(ServerError):
    pass


class TokenRateExceeded(ServerError):
    pass


class NotReady(ServerError):
    pass


class BadSettings(ServerError):
    pass


class ServerBusy(ServerError):
    pass


class InsufficientMemory(ServerError):
    pass


class ModelLoadFailed(ServerError):
    pass


class LoadingCrashed(ModelLoadFailed):
    pass


class EngineFailed(ServerError):
    pass


class UpstreamError(ServerError):
    pass


class UpstreamTimeout(UpstreamError):
    pass


class RequestTimeout(ServerError):
    pass
