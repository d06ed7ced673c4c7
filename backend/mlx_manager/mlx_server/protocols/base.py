"""The protocol interface: translates between one wire format and the requests and events of `types`. Pure.

`app.state.protocols` holds one `Protocol` for each generating endpoint. The HTTP layers (routes, streams, error
responses, unknown paths) use the protocol of the request's path and know no wire format.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.types import ChatRequest, CompletionRequest, Generation, GenerationEvent

Request = ChatRequest | CompletionRequest
BodyT = TypeVar("BodyT")
RequestT = TypeVar("RequestT", bound=Request)


@dataclass(frozen=True, slots=True)
class ParseOptions:
    """The settings that apply to every body."""

    default_max_tokens: int = 4096
    reject_unknown: bool = False


@dataclass(frozen=True, slots=True)
class ErrorReply:
    status: int
    body: JsonObject
    headers: Mapping[str, str] = field(default_factory=dict)


class Writer(ABC):
    """Encodes the answer to one request: frames from events, or one body from the whole generation."""

    keep_alive_seconds: ClassVar[float] = 15

    @abstractmethod
    def frames(self, event: GenerationEvent) -> Iterable[bytes]: ...

    @abstractmethod
    def response(self, generation: Generation) -> JsonObject: ...

    @abstractmethod
    def error_frame(self, error: Exception, request_id: str) -> bytes:
        """The last frame of a stream that fails after its headers."""

    @abstractmethod
    def end(self) -> bytes:
        """Bytes to send after the frames of the last event."""

    def keep_alive(self) -> bytes:
        """A frame that clients ignore. Empty if the stream must send nothing more."""
        return b": ping\n\n"


class Endpoint(ABC):
    """`paths`: the endpoint paths. Rate limits count their requests, and their errors use this envelope."""

    paths: ClassVar[tuple[str, ...]]
    request_id_headers: ClassVar[tuple[bytes, ...]] = (b"x-request-id",)
    client_header: ClassVar[bytes | None] = None
    """A header that only clients of this protocol send. They get its error envelope on every path."""

    @abstractmethod
    def error(self, error: Exception, request_id: str) -> ErrorReply:
        """Also encodes BrokenBody (schema violations), UnknownPath and MethodNotAllowed."""


class Protocol(Endpoint, Generic[BodyT, RequestT]):
    """The protocol of an endpoint that generates."""

    @abstractmethod
    def parse(self, body: BodyT, options: ParseOptions) -> RequestT:
        """Raises InvalidRequest and UnsupportedParameter, which name the field."""

    @abstractmethod
    def writer(self, request: RequestT) -> Writer: ...


AnyProtocol = Protocol[Any, Any]


class Protocols:
    """All protocols of a server. The first is the default."""

    def __init__(self, protocols: Sequence[Endpoint]) -> None:
        self._protocols = list(protocols)

    def add(self, protocol: Endpoint) -> None:
        self._protocols.append(protocol)

    def at(self, path: str) -> Endpoint | None:
        """The protocol whose `paths` contain the path."""
        return next((protocol for protocol in self._protocols if path in protocol.paths), None)

    def of(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Endpoint:
        """The protocol of a request, by path, parent path or client header; else the default."""
        found = self.at(path) or next((protocol for protocol in self._protocols if _is_below(path, protocol)), None)
        if found is not None:
            return found
        sent = {name for name, _ in headers}
        return next((protocol for protocol in self._protocols if protocol.client_header in sent), self._protocols[0])


def _is_below(path: str, protocol: Endpoint) -> bool:
    """Whether the path is a resource under one of the protocol's endpoints."""
    return any(path.startswith(f"{endpoint}/") for endpoint in protocol.paths)


def retry_after(wait_seconds: int | None) -> dict[str, str]:
    return {"Retry-After": str(wait_seconds)} if wait_seconds is not None else {}
