"""What OpenAI's protocols have in common: their error envelope, and the frames of their streams. Pure."""

from abc import abstractmethod

import msgspec

from mlx_manager.mlx_server.errors import BrokenBody, ServerError
from mlx_manager.mlx_server.protocols.base import BodyT, Endpoint, ErrorReply, Protocol, RequestT, Writer, retry_after
from mlx_manager.mlx_server.protocols.errors import error_body, status_of
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.types import GenerationEvent


class OpenAIEndpoint(Endpoint):
    def __init__(self, broken_body_status: int = 422) -> None:
        """Users choose the status of a body that breaks the schema: api.openai.com answers 400."""
        self._broken_body_status = broken_body_status

    def error(self, error: Exception, request_id: str) -> ErrorReply:
        status = self._broken_body_status if isinstance(error, BrokenBody) else status_of(error)
        headers = retry_after(error.retry_after_seconds) if isinstance(error, ServerError) else {}
        return ErrorReply(status, error_body(error), headers)


class OpenAIProtocol(OpenAIEndpoint, Protocol[BodyT, RequestT]):
    """Of those endpoints of OpenAI's that generate."""


class OpenAIWriter(Writer):
    """Chunks as `data:` lines. A stream that fails has no [DONE]."""

    @abstractmethod
    def event(self, event: GenerationEvent) -> list[JsonObject]:
        """The chunks that the event becomes."""

    def frames(self, event: GenerationEvent) -> list[bytes]:
        return [_frame(chunk) for chunk in self.event(event)]

    def error_frame(self, error: Exception, request_id: str) -> bytes:
        return _frame(error_body(error))

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"


def _frame(chunk: JsonObject) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
