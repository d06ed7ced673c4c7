"""Shared parts of OpenAI's protocols: the error envelope and the stream frames. Pure."""

from abc import abstractmethod

from mlx_manager.mlx_server.errors import BrokenBody, ServerError
from mlx_manager.mlx_server.protocols.base import BodyT, Endpoint, ErrorReply, Protocol, RequestT, Writer, retry_after
from mlx_manager.mlx_server.protocols.errors import error_body, status_of
from mlx_manager.mlx_server.protocols.text_frames import TextFrame
from mlx_manager.mlx_server.protocols.wire import JsonObject, data_frame
from mlx_manager.mlx_server.types import GenerationEvent, ReasoningDelta, TextDelta

_TEXTS = (TextDelta, ReasoningDelta)


class OpenAIEndpoint(Endpoint):
    def __init__(self, broken_body_status: int = 422) -> None:
        """Status for schema violations; api.openai.com answers 400."""
        self._broken_body_status = broken_body_status

    def error(self, error: Exception, request_id: str) -> ErrorReply:
        status = self._broken_body_status if isinstance(error, BrokenBody) else status_of(error)
        headers = retry_after(error.retry_after_seconds) if isinstance(error, ServerError) else {}
        return ErrorReply(status, error_body(error), headers)


class OpenAIProtocol(OpenAIEndpoint, Protocol[BodyT, RequestT]):
    """The protocol of OpenAI's generating endpoints."""


class ChunkProtocol(OpenAIProtocol[BodyT, RequestT]):
    """A protocol that streams chunks of one shape. In-process callers read them as dicts."""

    @abstractmethod
    def writer(self, request: RequestT) -> "OpenAIWriter": ...


class OpenAIWriter(Writer):
    """Writes chunks as `data:` lines. A failed stream has no [DONE]."""

    def __init__(self) -> None:
        self._texts: dict[tuple[type[GenerationEvent], int], TextFrame | None] = {}

    @abstractmethod
    def event(self, event: GenerationEvent) -> list[JsonObject]:
        """The chunks for the event."""

    def frames(self, event: GenerationEvent) -> list[bytes]:
        if isinstance(event, _TEXTS) and not event.logprobs:
            key = type(event), event.index
            frame = self._texts[key] if key in self._texts else self._text_frame(*key)
            return [frame(event.text)] if frame is not None else []
        return [data_frame(chunk) for chunk in self.event(event)]

    def _text_frame(self, kind: type[TextDelta | ReasoningDelta], index: int) -> TextFrame | None:
        """None if the protocol has no such text."""

        def write(text: str) -> bytes:
            return b"".join(map(data_frame, self.event(kind(index, text))))

        frame = TextFrame(write) if write("") else None
        self._texts[kind, index] = frame
        return frame

    def error_frame(self, error: Exception, request_id: str) -> bytes:
        return data_frame(error_body(error))

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"
