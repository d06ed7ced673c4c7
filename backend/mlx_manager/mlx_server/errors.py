"""Everything that can go wrong with a request, as exceptions. Knows no HTTP: `protocols/errors.py` maps them.

ServerError
├── InvalidRequest             the client asked for something that cannot be served as asked
│   ├── UnsupportedParameter   a parameter or content that this server does not have
│   ├── ChatTemplateMissing    chat with a model that has no chat template
│   ├── ChatTemplateFailed     the model's chat template takes too much time or memory
│   ├── ContextLengthExceeded  the prompt leaves no room for an answer in the model's context
│   ├── PreviousResponseNotFound  the response that the request goes on from is not stored
│   └── BrokenBody             the body breaks the schema of its endpoint, or is not JSON
├── ModelNotFound              no loadable model has that id
├── ResponseNotFound           no stored response has that id
├── UnknownPath                no endpoint has that path
├── MethodNotAllowed           the endpoint has another method
├── NotAuthorized              the key that the endpoint asks for is missing or wrong
├── AdminClosed                there is no key that would open the admin endpoints
├── HostNotAllowed             the request is addressed to a name that is not this server's
├── OriginNotAllowed           a web page that the settings do not name sent the request
├── RequestTooLarge            the body is longer than the server reads
├── RequestTooSlow             the body does not arrive
├── UnsupportedEncoding        the body is compressed
├── RequestRateExceeded        the key has asked more often in a minute than it may
├── TokenRateExceeded          the key has used more tokens in a minute than it may
├── NotReady                   the server is not running its lifespan, is shutting down, or restarts a crashed worker
├── BadSettings                settings that were to be reloaded have faults
├── ServerBusy                 as many requests wait as may wait
├── InsufficientMemory         the model does not fit beside those in use
├── ModelLoadFailed            the weights or the tokenizer could not be loaded
│   └── LoadingCrashed         the worker process was killed while it loaded them, and may not be the next time
├── EngineFailed               the worker process died or broke while it worked on the request
├── UpstreamError              the upstream server cannot be reached, failed, or answered with nonsense
│   └── UpstreamTimeout        the upstream server said nothing for too long
└── RequestTimeout             the request took longer than the server lets one take
"""

from mlx_manager.utf8 import shown


class ServerError(Exception):
    """Says what was wrong, with the value, and the remedy. `param` names the request field at fault, if one is.

    `retry_after_seconds` is how long the client does best to wait before it tries again, where that is known.
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
    """`tokens` are those of the prompt, and `limit` the most there may be, where both are known."""

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
