"""What a protocol is: the translator between one wire format and the requests and events of `types`. Pure.

The API process has one `Protocol` object for each endpoint that generates, in `app.state.protocols`. Every HTTP layer
(routes, streams, refusals, unknown paths) asks the protocol of the request's path and knows no wire format itself.
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
    """What the settings say about every body."""

    default_max_tokens: int = 4096
    reject_unknown: bool = False


@dataclass(frozen=True, slots=True)
class ErrorReply:
    status: int
    body: JsonObject
    headers: Mapping[str, str] = field(default_factory=dict)


class Writer(ABC):
    """Writes the answer to one request: frame by frame from its events, or whole from its generation."""

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
        """What stands behind the frames of the last event."""

    def keep_alive(self) -> bytes:
        """A frame that clients ignore; empty where none may be sent any more."""
        return b": ping\n\n"


class Endpoint(ABC):
    """`paths` are those of the endpoints, whose requests rate limits count, and whose errors have its envelope."""

    paths: ClassVar[tuple[str, ...]]
    request_id_headers: ClassVar[tuple[bytes, ...]] = (b"x-request-id",)
    client_header: ClassVar[bytes | None] = None
    """A header that only clients of this protocol send: they read its errors on every path."""

    @abstractmethod
    def error(self, error: Exception, request_id: str) -> ErrorReply:
        """Also of a body that breaks the schema (BrokenBody), and of unknown paths and methods."""


class Protocol(Endpoint, Generic[BodyT, RequestT]):
    """Of endpoints that generate."""

    @abstractmethod
    def parse(self, body: BodyT, options: ParseOptions) -> RequestT:
        """Raises InvalidRequest and UnsupportedParameter, which name the field."""

    @abstractmethod
    def writer(self, request: RequestT) -> Writer: ...


AnyProtocol = Protocol[Any, Any]


class Protocols:
    """All protocols of a server. The first is the one of requests that belong to no other."""

    def __init__(self, protocols: Sequence[Endpoint]) -> None:
        self._protocols = list(protocols)

    def add(self, protocol: Endpoint) -> None:
        self._protocols.append(protocol)

    def at(self, path: str) -> Endpoint | None:
        """The protocol whose endpoint has that path."""
        return next((protocol for protocol in self._protocols if path in protocol.paths), None)

    def of(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Endpoint:
        """The protocol that the sender of the request speaks, as far as path and headers show it."""
        found = self.at(path) or next((protocol for protocol in self._protocols if _is_below(path, protocol)), None)
        if found is not None:
            return found
        sent = {name for name, _ in headers}
        return next((protocol for protocol in self._protocols if protocol.client_header in sent), self._protocols[0])


def _is_below(path: str, protocol: Endpoint) -> bool:
    """Whether the path is that of something that an endpoint of the protocol has made."""
    return any(path.startswith(f"{endpoint}/") for endpoint in protocol.paths)


def retry_after(wait_seconds: int | None) -> dict[str, str]:
    return {"Retry-After": str(wait_seconds)} if wait_seconds is not None else {}
