"""What goes wrong between an upstream and this server, as the errors that its clients get. No key is in any of them."""

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from mlx_manager.mlx_server.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerBusy,
    ServerError,
    UpstreamError,
    UpstreamTimeout,
)
from mlx_manager.mlx_server.services.upstreams.event_stream import MAX_EVENT_BYTES
from mlx_manager.mlx_server.services.upstreams.failures import (
    UpstreamFailure,
    error_message,
    error_object,
    error_param,
    error_status,
    is_about_context,
)
from mlx_manager.mlx_server.services.upstreams.shapes import BadChunk
from mlx_manager.mlx_server.upstream_settings import UpstreamSettings
from mlx_manager.proxies import UnusableProxy

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 65_536
_MAX_MESSAGE_CHARACTERS = 1000
_MAX_EXCERPT_CHARACTERS = 200
_EVENT_STREAM = "text/event-stream"
_SECONDS = re.compile(r"\d{1,9}(\.\d*)?", re.ASCII)


class Replies:
    """Speaks of one upstream."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._who = f"Upstream {settings.name!r}"

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Raises ServerErrors for what asking the upstream, and reading its answer, raises."""
        try:
            yield
        except UpstreamFailure as exc:
            raise self._failure(exc.error) from exc
        except BadChunk as exc:
            raise UpstreamError(self._without_key(f"{self._who} {exc}.")) from exc
        except RecursionError as exc:
            raise UpstreamError(f"{self._who} sent JSON that is nested too deeply.") from exc
        except httpx.TimeoutException as exc:
            seconds = self._settings.timeout_seconds
            what = "took no connection" if isinstance(exc, httpx.ConnectTimeout) else f"said nothing for {seconds:g} s"
            raise UpstreamTimeout(f"{self._who} {what}: it is down or busy, or its timeout_seconds too short.") from exc
        except UnusableProxy as exc:
            raise UpstreamError(f"{self._who} cannot be asked. {exc}") from exc
        except httpx.ConnectError as exc:
            raise UpstreamError(f"{self._who} cannot be reached: start it, or mend its base_url.") from exc
        except httpx.RequestError as exc:
            raise UpstreamError(f"{self._who} broke the connection off ({type(exc).__name__}).") from exc

    async def is_stream(self, response: httpx.Response) -> bool:
        """False for an answer that is one JSON text. Raises the ServerError that any other reply stands for."""
        if not response.is_success:
            raise self._refusal(response, error_object(await _beginning(response)))
        media_type = response.headers.get("content-type", _EVENT_STREAM).partition(";")[0].strip().lower()
        if media_type in (_EVENT_STREAM, "application/x-ndjson"):
            return True
        if media_type == "application/json" or media_type.endswith("+json"):
            return False
        said = (await _beginning(response)).decode(errors="replace")[:_MAX_EXCERPT_CHARACTERS]
        raise UpstreamError(self._without_key(f"{self._who} answered with {media_type!r}, not with a stream: {said!r}"))

    def _refusal(self, response: httpx.Response, error: object) -> ServerError:
        if response.has_redirect_location:
            status = response.status_code
            return UpstreamError(f"{self._who} answered {status}, a redirect: give the server itself as its base_url.")
        message = self._message(error) or response.reason_phrase
        failure = self._known_failure(response.status_code, error, message)
        if failure is None:
            failure = UpstreamError(f"{self._who} answered {response.status_code}: {message}")
        if isinstance(failure, ServerBusy | UpstreamError):
            failure.retry_after_seconds = retry_after_seconds(response.headers)
        return failure

    def _failure(self, error: object) -> ServerError:
        message, status = self._message(error), error_status(error)
        failure = self._known_failure(status, error, message) if status is not None else None
        return failure if failure is not None else UpstreamError(f"{self._who} answered with an error: {message}")

    def _known_failure(self, status: int, error: object, message: str) -> ServerError | None:
        text = f"{self._who}: {message}"
        match status:
            case 400 | 413 | 422:
                kind = ContextLengthExceeded if is_about_context(error) else InvalidRequest
                return kind(text, param=error_param(error))
            case 404:
                return ModelNotFound(text, param="model")
            case 429:
                return ServerBusy(text)
            case 401 | 403:  # not this server's client is refused, so it is not told what was said to us
                return UpstreamError(f"{self._who} refused the key of this server ({status}): mend its api_key.")
            case 408 | 504:
                return UpstreamTimeout(text)
        return None

    def _message(self, error: object) -> str:
        return self._without_key(error_message(error)[:_MAX_MESSAGE_CHARACTERS])

    def _without_key(self, text: str) -> str:
        key = self._settings.api_key
        return text if key is None else text.replace(key.get_secret_value(), "***")


async def whole_body(response: httpx.Response) -> bytes:
    """Raises httpx.RequestError and BadChunk."""
    content = await _beginning(response, MAX_EVENT_BYTES + 1)
    if len(content) > MAX_EVENT_BYTES:
        raise BadChunk(f"sent an answer of more than {MAX_EVENT_BYTES} bytes")
    return content


async def _beginning(response: httpx.Response, max_bytes: int = MAX_REPLY_BYTES) -> bytes:
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) >= max_bytes:
            break
    return bytes(content[:max_bytes])


def retry_after_seconds(headers: httpx.Headers) -> int | None:
    """Whole seconds, rounded up; None where the header has none, or nonsense."""
    text = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return math.ceil(float(text))
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:  # HTTP's dates are UTC, also where they do not say so
        date = date.replace(tzinfo=UTC)
    return max(0, math.ceil((date - datetime.now(UTC)).total_seconds()))
