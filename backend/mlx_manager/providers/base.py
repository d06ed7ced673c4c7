"""The client for OpenAI-compatible servers: connections, errors, health checks, and detection of models.

A `Provider` describes each kind of server; this module knows no kind by name.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import httpx
from pydantic import ValidationError

from mlx_manager import addresses
from mlx_manager.providers.connections import Connections
from mlx_manager.providers.settings import ProviderSettings
from mlx_manager.proxies import UnusableProxy

if TYPE_CHECKING:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.profiles.openai import OpenAIModelProfile

logger = logging.getLogger(__name__)

LOADING = "loading model"
"""The status of a server that is up but cannot answer yet."""
_EXCERPT_CHARACTERS = 200

S = TypeVar("S", bound=ProviderSettings)
ListedModel = dict[str, Any]
"""An entry of `/v1/models`: it has an `id`, and other keys by server."""


class ModelError(Exception):
    """A model could not be found or created. `details` has the requested `url` and the `status` of its answer."""

    def __init__(self, message: str, model_name: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.model_name = model_name
        self.details = details if details is not None else {}


@dataclass(frozen=True, slots=True)
class ProviderHealthStatus:
    connected: bool
    """The server answers; it may still be loading its model."""
    model_detected: bool
    model_id: str | None
    base_url: str
    provider_type: str
    metadata: dict[str, Any] = field(default_factory=dict)
    """`status`: the text of `/health`; `models`: the listed ids; `selected`: why this model was chosen."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Provider(Generic[S]):
    """One kind of server: how it differs from the others, and the operations that all kinds share."""

    name: str
    """The `provider_type` of a health status."""
    title: str
    start: str
    """The command that starts the server."""
    settings: type[S]
    default_model: str
    """The name under which the server accepts its loaded model."""
    is_loaded: Callable[[ListedModel], bool]
    """Whether an entry of the list is the loaded model, if the server shows it."""
    profile: "OpenAIModelProfile"
    empty_reply_remedy: str = "Check that it is an OpenAI-compatible server."
    has_health: bool = True
    """OpenAI's API has no `/health`, so a `/health` on such a server may have another meaning."""

    def read_settings(self, given: S | None = None, /, **values: Any) -> S:
        """`given`, or the environment overridden by `values`. Raises ModelError for invalid values."""
        if given is not None:
            return given
        try:
            return self.settings(**values)
        except ValidationError as exc:
            wrong = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors())
            raise ModelError(
                f"Invalid settings of {self.title}: {wrong}. Correct them.", details={"url": None, "status": None}
            ) from exc

    async def detect_model(self, base_url: str, timeout: float = 10) -> str | None:  # noqa: ASYNC109
        """The id of the model to use: the configured one if it is listed, else the loaded one, else the first.

        None, with a warning, if the server lists no models. Raises ModelError.
        """
        async with ProviderClient(self, self.read_settings(base_url=base_url, timeout=timeout)) as client:
            return await client.detect()

    async def check_health(self, settings: S | None = None) -> ProviderHealthStatus:
        """Never raises: failures are in `error`."""
        try:
            settings = self.read_settings(settings)
            async with ProviderClient(self, settings) as client:
                return await client.check()
        except ModelError as exc:  # invalid settings
            base_url = addresses.without_credentials(settings.base_url) if settings is not None else ""
            return ProviderHealthStatus(False, False, None, base_url, self.name, error=exc.message)

    def create_model(self, model_name: str | None = None, settings: S | None = None) -> "OpenAIChatModel":
        """Sends no request. Without a configured name, the model is the one that the server has loaded."""
        settings = self.read_settings(settings)
        try:
            from mlx_manager.providers import chat_model
        except ImportError as exc:
            raise ImportError(
                f"Models need Pydantic AI ({exc}). Install it with `pip install 'mlx-manager[pydantic-ai]'`."
            ) from exc
        names = (model_name, settings.model_name, self.default_model)
        root = server_root(settings.base_url)
        with _proxy_named(root):
            return chat_model.build(
                next(name for name in names if name is not None),
                provider_name=self.name,
                base_url=f"{root}/v1",
                api_key=settings.api_key,
                profile=self.profile,
            )

    async def create_model_async(
        self,
        model_name: str | None = None,
        settings: S | None = None,
        auto_detect: bool = True,
        test_connection: bool = True,
    ) -> "OpenAIChatModel":
        """Raises ModelError if the server cannot be reached or does not list its models."""
        settings = self.read_settings(settings)
        if model_name is not None:
            settings = settings.model_copy(update={"model_name": model_name})
        async with ProviderClient(self, settings) as client:
            if test_connection:
                await client.reach()
            if auto_detect and model_name is None:
                model_name = await client.detect()
        return self.create_model(model_name, settings)


def server_root(base_url: str) -> str:
    """`base_url` without a trailing `/v1`. Raises ModelError for an invalid URL."""
    try:
        return addresses.server_root(base_url)
    except ValueError as exc:
        raise ModelError(str(exc), details={"url": addresses.without_credentials(base_url), "status": None}) from exc


@contextlib.contextmanager
def _proxy_named(root: str) -> Iterator[None]:
    try:
        yield
    except UnusableProxy as exc:
        raise ModelError(str(exc), details={"url": root, "status": None}) from exc


class ProviderClient:
    """The client of one server, with one connection pool. Used from one event loop. Close it, or use `async with`."""

    def __init__(
        self, provider: Provider[S], settings: S, upstream: str | None = None, read_timeout_seconds: float | None = None
    ) -> None:
        """`upstream` is the name of an upstream, for messages: its settings do not come from the environment.

        `connections` may serve other requests. A response on them may pause for `read_timeout_seconds`.
        """
        self.provider = provider
        self.settings = settings
        self.title = provider.title if upstream is None else f"Upstream {upstream!r}"
        self.root = server_root(settings.base_url)
        self._is_upstream = upstream is not None
        read_timeout_seconds = read_timeout_seconds if read_timeout_seconds is not None else settings.timeout
        self.connections = Connections(self.root, settings.api_key, read_timeout_seconds)

    def open(self) -> None:
        """Raises ModelError at once for an unusable proxy in the environment, not at the first request."""
        with _proxy_named(self.root):
            self.connections.open()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.connections.aclose()

    async def is_running(self) -> bool:
        try:
            await self.reach()
        except ModelError:
            return False
        return True

    async def is_model_loaded(self) -> bool:
        return (await self.check()).model_detected

    async def check(self) -> ProviderHealthStatus:
        """Never raises: failures are in `error`."""
        connected, choice, error = False, None, None
        metadata: dict[str, Any] = {}
        try:
            status = await self.read_health()
            if status is not None:
                connected, metadata["status"] = True, status
            if status != LOADING:
                choice = self.choose(await self.fetch_models())
                connected = True
                metadata |= {"models": choice.listed, "selected": choice.selected}
        except ModelError as exc:
            error = exc.message
        model_id = choice.model_id if choice is not None else None
        return ProviderHealthStatus(
            connected, model_id is not None, model_id, self.settings.base_url, self.provider.name, metadata, error
        )

    async def reach(self) -> None:
        """Raises ModelError unless the server answers."""
        if await self.read_health() is None:
            await self.fetch_models()

    async def detect(self) -> str | None:
        """The id of the model to use; None, with a warning, if the server lists no models. Raises ModelError."""
        choice = self.choose(await self.fetch_models())
        title, configured = self.title, self.settings.model_name
        if choice.model_id is None:
            logger.warning("%s at %s lists no models. Load one.", title, self.root)
        elif configured is not None and choice.selected != "configured":
            logger.warning(
                "%s does not list the configured model %s. Using %s.",
                title,
                configured,
                choice.model_id,
            )
        elif choice.selected == "first listed":
            logger.warning(
                "%s lists %d models, not which one is loaded. Using the first, %s. Set %s to choose another.",
                title,
                len(choice.listed),
                choice.model_id,
                self._setting("model_name"),
            )
        return choice.model_id

    async def read_health(self) -> str | None:
        """The status of `/health`; None if the server has none. Raises ModelError unless it is healthy or loading."""
        if not self.provider.has_health:
            return None
        response = await self._get("/health")
        if response.status_code == 404:
            return None
        if response.status_code == 503 and _reason(response).lower() in (LOADING, "loading"):
            return LOADING
        self._require_success(response)
        return _status_text(response)

    async def fetch_models(self) -> list[ListedModel]:
        """The entries of `/v1/models` that have a valid id. Raises ModelError."""
        reply = await self.fetch_json("/v1/models")
        entries = reply.get("data", "") if isinstance(reply, dict) else ""
        if entries is None:  # Ollama without models
            return []
        models = [entry for entry in entries if _has_valid_id(entry)] if isinstance(entries, list) else []
        if not isinstance(entries, list) or (entries and not models):
            raise self.unexpected("/v1/models", "a list of models", reply)
        if len(models) < len(entries):
            logger.debug("%s at %s lists entries without an id", self.title, self.root)
        return models

    async def fetch_json(self, path: str) -> object:
        """The JSON that the server returns for `path`. Raises ModelError."""
        response = await self._get(path)
        self._require_success(response)
        if not response.content.strip():
            raise self._error(path, f"returned an empty body. {self.provider.empty_reply_remedy}", response.status_code)
        try:
            return response.json()
        except (ValueError, RecursionError) as exc:
            raise self.unexpected(path, "JSON", response.text) from exc

    def unexpected(self, path: str, wanted: str, reply: object) -> ModelError:
        remedy = f"Set {self._setting('base_url')} to an OpenAI-compatible server."
        return self._error(path, f"did not answer with {wanted}: {repr(reply)[:_EXCERPT_CHARACTERS]}. {remedy}", 200)

    def choose(self, models: list[ListedModel]) -> "Choice":
        """The configured model, else the loaded one, else the first."""
        listed = [str(model["id"]) for model in models]
        configured = self.settings.model_name
        if configured is not None and listed and configured in (*listed, self.provider.default_model):
            return Choice(configured, "configured", listed)
        loaded = next((str(model["id"]) for model in models if self.provider.is_loaded(model)), None)
        if loaded is not None:
            return Choice(loaded, "loaded", listed)
        if not listed:
            return Choice(None, "none listed", listed)
        return Choice(listed[0], "only one listed" if len(listed) == 1 else "first listed", listed)

    async def _get(self, path: str) -> httpx.Response:
        seconds = self.settings.timeout
        try:
            # httpx limits each read; this limits the whole request.
            async with asyncio.timeout(seconds):
                with _proxy_named(self.root):
                    response = await self.connections.send("GET", path)
                async with contextlib.aclosing(response):
                    await response.aread()
                return response
        except (TimeoutError, httpx.TimeoutException) as exc:
            remedy = "Retry later." if self._is_upstream else f"Retry later, or raise {self._setting('timeout')}."
            raise self._error(path, f"did not answer within {seconds:g} s. {remedy}") from exc
        except httpx.ConnectError as exc:
            command = f" with `{self.provider.start}`" if self.provider.start else ""
            remedy = f"Start it{command}, or set {self._setting('base_url')}."
            raise self._error(path, f"cannot be reached ({exc}). {remedy}") from exc
        except (httpx.RemoteProtocolError, httpx.ReadError) as exc:
            raise self._error(path, f"closed the connection in its reply ({exc}). Check its log.") from exc
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as exc:  # RuntimeError: a closed client or event loop
            raise self._error(path, f"could not be queried ({exc}). Check {self._setting('base_url')}.") from exc

    def _require_success(self, response: httpx.Response) -> None:
        path, status = response.url.path, response.status_code
        if response.has_redirect_location:
            target = response.headers["location"]
            remedy = f"Set {self._setting('base_url')} to the server itself."
            raise self._error(path, f"answered {status}, a redirect to {target}. {remedy}", status)
        if not response.is_success:
            remedy = f"Set {self._setting('api_key')}." if status in (401, 403) else "Check its log."
            raise self._error(path, f"answered {status}: {_reason(response).removesuffix('.')}. {remedy}", status)

    def _setting(self, name: str) -> str:
        """The name of the setting in messages."""
        env_prefix = str(self.settings.model_config.get("env_prefix", ""))
        return f"its {name}" if self._is_upstream else f"{env_prefix}{name.upper()}"

    def _error(self, path: str, what: str, status: int | None = None) -> ModelError:
        url = self.root + path
        return ModelError(f"{self.title} at {url} {what}", self.settings.model_name, {"url": url, "status": status})


@dataclass(frozen=True, slots=True)
class Choice:
    model_id: str | None
    selected: str
    """Why it was chosen: `configured`, `loaded`, `only one listed`, `first listed`; or `none listed`."""
    listed: list[str]


def _has_valid_id(entry: object) -> bool:
    """An id must be printable: a lone surrogate, for example, cannot be written as JSON."""
    model_id = entry.get("id") if isinstance(entry, dict) else None
    return isinstance(model_id, str) and model_id != "" and model_id.isprintable()


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        reply = response.json()
    except (ValueError, RecursionError):
        return {}
    return reply if isinstance(reply, dict) else {}


def _status_text(response: httpx.Response) -> str:
    """The status of `{"status": "ok"}` or of plain text, in lower case."""
    status = _json_object(response).get("status")
    text = status if isinstance(status, str) else response.text.strip()
    return text[:_EXCERPT_CHARACTERS].lower() if text else "ok"


def _reason(response: httpx.Response) -> str:
    """The message of the server's error object, else its text, else the reason phrase."""
    reply = _json_object(response)
    error = reply.get("error", reply.get("status", reply.get("detail")))
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else response.text.strip()
    return text[:_EXCERPT_CHARACTERS] if text else response.reason_phrase
