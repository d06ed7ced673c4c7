"""Turns failures of an upstream into the errors that clients get. No message contains a key."""

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
    is_context_error,
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
    """The replies of one upstream."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._label = f"Upstream {settings.name!r}"

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Raises a ServerError for any failure to query the upstream or to read its answer."""
        try:
            yield
        except UpstreamFailure as exc:
            raise self._stream_error(exc.error) from exc
        except BadChunk as exc:
            raise UpstreamError(self._without_key(f"{self._label} {exc}. Check its log.")) from exc
        except RecursionError as exc:
            raise UpstreamError(f"{self._label} sent JSON that is nested too deeply. Check its log.") from exc
        except httpx.TimeoutException as exc:
            seconds = self._settings.timeout_seconds
            what = "did not connect" if isinstance(exc, httpx.ConnectTimeout) else f"sent nothing for {seconds:g} s"
            raise UpstreamTimeout(f"{self._label} {what}. Check that it runs, or raise its timeout_seconds.") from exc
        except UnusableProxy as exc:
            raise UpstreamError(f"{self._label} cannot be reached. {exc}") from exc
        except httpx.ConnectError as exc:
            raise UpstreamError(f"{self._label} cannot be reached. Start it, or correct its base_url.") from exc
        except httpx.RequestError as exc:
            raise UpstreamError(f"{self._label} closed the connection ({type(exc).__name__}). Check its log.") from exc

    async def is_stream(self, response: httpx.Response) -> bool:
        """False for an answer in one JSON document. Raises a ServerError for any other reply."""
        if not response.is_success:
            raise self._status_error(response, error_object(await _beginning(response)))
        media_type = response.headers.get("content-type", _EVENT_STREAM).partition(";")[0].strip().lower()
        if media_type in (_EVENT_STREAM, "application/x-ndjson"):
            return True
        if media_type == "application/json" or media_type.endswith("+json"):
            return False
        excerpt = (await _beginning(response)).decode(errors="replace")[:_MAX_EXCERPT_CHARACTERS]
        what = f"{self._label} answered with {media_type!r} instead of a stream: {excerpt!r}. Check its base_url."
        raise UpstreamError(self._without_key(what))

    def _status_error(self, response: httpx.Response, error: object) -> ServerError:
        if response.has_redirect_location:
            what = f"{self._label} answered {response.status_code}, a redirect."
            return UpstreamError(f"{what} Set its base_url to the address of the server itself.")
        message = self._message(error) or f"{response.reason_phrase}."
        failure = self._mapped_error(response.status_code, error, message)
        if failure is None:
            failure = UpstreamError(f"{self._label} answered {response.status_code}: {message} Check its log.")
        if isinstance(failure, ServerBusy | UpstreamError):
            failure.retry_after_seconds = retry_after_seconds(response.headers)
        return failure

    def _stream_error(self, error: object) -> ServerError:
        message, status = self._message(error), error_status(error)
        failure = self._mapped_error(status, error, message) if status is not None else None
        if failure is not None:
            return failure
        return UpstreamError(f"{self._label} sent an error: {message} Check its log.")

    def _mapped_error(self, status: int, error: object, message: str) -> ServerError | None:
        text = f"{self._label}: {message}"
        match status:
            case 400 | 413 | 422:
                if is_context_error(error):
                    return ContextLengthExceeded(f"{text} Shorten the prompt.", param=error_param(error))
                return InvalidRequest(f"{text} Correct the request.", param=error_param(error))
            case 404:
                return ModelNotFound(f"{text} Check the model's id.", param="model")
            case 429:
                return ServerBusy(f"{text} Retry later.")
            case 401 | 403:  # the key is this server's, so the client gets no details
                return UpstreamError(f"{self._label} rejected the key of this server ({status}). Correct its api_key.")
            case 408 | 504:
                return UpstreamTimeout(f"{text} Retry later.")
        return None

    def _message(self, error: object) -> str:
        """The upstream's message as a sentence; "" if it has none."""
        text = self._without_key(error_message(error)[:_MAX_MESSAGE_CHARACTERS]).strip()
        return text if not text or text.endswith((".", "!", "?")) else f"{text}."

    def _without_key(self, text: str) -> str:
        key = self._settings.api_key
        return text if key is None else text.replace(key.get_secret_value(), "***")


async def whole_body(response: httpx.Response) -> bytes:
    """Raises httpx.RequestError and BadChunk."""
    content = await _beginning(response, MAX_EVENT_BYTES + 1)
    if len(content) > MAX_EVENT_BYTES:
        raise BadChunk(f"sent an answer longer than {MAX_EVENT_BYTES} bytes")
    return content


async def _beginning(response: httpx.Response, max_bytes: int = MAX_REPLY_BYTES) -> bytes:
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) >= max_bytes:
            break
    return bytes(content[:max_bytes])


def retry_after_seconds(headers: httpx.Headers) -> int | None:
    """The Retry-After header in seconds, rounded up; None if it is missing or invalid."""
    text = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return math.ceil(float(text))
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:  # HTTP dates are UTC, with or without a zone
        date = date.replace(tzinfo=UTC)
    return max(0, math.ceil((date - datetime.now(UTC)).total_seconds()))
