"""What OpenAI-compatible servers share: a client with one pool of connections, errors, health checks, and detection.

Each server is described by a `Provider`; nothing here knows one by name.
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
"""What a health check says of a server that is there and cannot answer yet."""
_EXCERPT_CHARACTERS = 200

S = TypeVar("S", bound=ProviderSettings)
ListedModel = dict[str, Any]
"""An entry of `/v1/models`: it has an `id`, and what else the server tells."""


class ModelError(Exception):
    """A model could not be found or made. `details` holds the `url` that was asked and the `status` of its answer."""

    def __init__(self, message: str, model_name: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.model_name = model_name
        self.details = details if details is not None else {}


@dataclass(frozen=True, slots=True)
class ProviderHealthStatus:
    connected: bool
    """The server is there; it may still be loading its model."""
    model_detected: bool
    model_id: str | None
    base_url: str
    provider_type: str
    metadata: dict[str, Any] = field(default_factory=dict)
    """`status`, in the words of `/health`; `models`, the ids listed; `selected`, why it is this one of them."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Provider(Generic[S]):
    """What tells one kind of server from another, and what can be done with all of them."""

    name: str
    """As `provider_type` of a health status."""
    title: str
    start: str
    """The command that starts one."""
    settings: type[S]
    default_model: str
    """A name by which the server knows whatever it has loaded."""
    is_loaded: Callable[[ListedModel], bool]
    """Whether an entry of the list is the loaded model, where the server shows it."""
    profile: "OpenAIModelProfile"
    empty_reply_hint: str = ""
    has_health: bool = True
    """OpenAI's API has no `/health`: what is there on such a server may be somebody else's."""

    def read_settings(self, given: S | None = None, /, **values: Any) -> S:
        """`given`, or else `values` over the environment's. Raises ModelError for values that cannot be used."""
        if given is not None:
            return given
        try:
            return self.settings(**values)
        except ValidationError as exc:
            wrong = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors())
            raise ModelError(
                f"The settings of {self.title} cannot be used: {wrong}", details={"url": None, "status": None}
            ) from exc

    async def detect_model(self, base_url: str, timeout: float = 10) -> str | None:  # noqa: ASYNC109
        """The id of the model to use: the configured one if it is listed, else the loaded one, else the first.

        None, and a warning, when the server lists none. Raises ModelError.
        """
        async with ProviderClient(self, self.read_settings(base_url=base_url, timeout=timeout)) as client:
            return await client.detect()

    async def check_health(self, settings: S | None = None) -> ProviderHealthStatus:
        """Raises nothing: what went wrong is in `error`."""
        try:
            settings = self.read_settings(settings)
            async with ProviderClient(self, settings) as client:
                return await client.check()
        except ModelError as exc:  # settings that cannot be used
            base_url = addresses.without_credentials(settings.base_url) if settings is not None else ""
            return ProviderHealthStatus(False, False, None, base_url, self.name, error=exc.message)

    def create_model(self, model_name: str | None = None, settings: S | None = None) -> "OpenAIChatModel":
        """Asks no server. Without a name anywhere, the model is whatever the server has loaded."""
        settings = self.read_settings(settings)
        try:
            from mlx_manager.providers import chat_model
        except ImportError as exc:
            raise ImportError(
                f"Making a model needs Pydantic AI ({exc}): pip install 'mlx-manager[pydantic-ai]'"
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
        """Raises ModelError when the server cannot be reached, or its models cannot be listed."""
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
    """`base_url` without the `/v1` at its end, where there is one. Raises ModelError when it cannot be used."""
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
    """One server over one pool of connections, used from one event loop. Close it, or use it with `async with`."""

    def __init__(
        self, provider: Provider[S], settings: S, upstream: str | None = None, silence_seconds: float | None = None
    ) -> None:
        """`upstream` is the name of a server whose settings are an upstream's, not the environment's: for messages.

        `connections` are for other requests too. A response on them may pause for `silence_seconds`.
        """
        self.provider = provider
        self.settings = settings
        self.title = provider.title if upstream is None else f"Upstream {upstream!r}"
        self.root = server_root(settings.base_url)
        self._is_upstream = upstream is not None
        silence_seconds = silence_seconds if silence_seconds is not None else settings.timeout
        self.connections = Connections(self.root, settings.api_key, silence_seconds)

    def open(self) -> None:
        """Raises ModelError for a proxy of the environment that cannot be used, as the first request would."""
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
        """Raises nothing: what went wrong is in `error`."""
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
        """Raises ModelError unless the server is there."""
        if await self.read_health() is None:
            await self.fetch_models()

    async def detect(self) -> str | None:
        """The id of the model to use; None, and a warning, when the server lists none. Raises ModelError."""
        choice = self.choose(await self.fetch_models())
        title, configured = self.title, self.settings.model_name
        if choice.model_id is None:
            logger.warning("%s lists no models url=%s", title, self.root)
        elif configured is not None and choice.selected != "configured":
            logger.warning(
                "%s does not list the configured model: taking another configured=%s model=%s",
                title,
                configured,
                choice.model_id,
            )
        elif choice.selected == "first listed":
            logger.warning(
                "%s lists several models, not which is loaded: taking the first; %s chooses another model=%s listed=%d",
                title,
                self._setting("model_name"),
                choice.model_id,
                len(choice.listed),
            )
        return choice.model_id

    async def read_health(self) -> str | None:
        """What `/health` says, None where there is none. Raises ModelError unless the server is well, or loading."""
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
        """The entries of `/v1/models`, without those that name no model. Raises ModelError."""
        reply = await self.fetch_json("/v1/models")
        entries = reply.get("data", "") if isinstance(reply, dict) else ""
        if entries is None:  # Ollama has no model
            return []
        models = [entry for entry in entries if _names_a_model(entry)] if isinstance(entries, list) else []
        if not isinstance(entries, list) or (entries and not models):
            raise self.unexpected("/v1/models", "a list of models", reply)
        if len(models) < len(entries):
            logger.debug("%s lists entries without an id url=%s", self.title, self.root)
        return models

    async def fetch_json(self, path: str) -> object:
        """What the server answers on `path`. Raises ModelError."""
        response = await self._get(path)
        self._require_success(response)
        if not response.content.strip():
            raise self._error(path, f"answered with nothing.{self.provider.empty_reply_hint}", response.status_code)
        try:
            return response.json()
        except (ValueError, RecursionError) as exc:
            raise self.unexpected(path, "JSON", response.text) from exc

    def unexpected(self, path: str, wanted: str, reply: object) -> ModelError:
        return self._error(path, f"did not answer with {wanted}: {repr(reply)[:_EXCERPT_CHARACTERS]}", 200)

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
            # httpx bounds each wait for a byte; this bounds all of them together.
            async with asyncio.timeout(seconds):
                with _proxy_named(self.root):
                    response = await self.connections.send("GET", path)
                async with contextlib.aclosing(response):
                    await response.aread()
                return response
        except (TimeoutError, httpx.TimeoutException) as exc:
            remedy = f"it may be busy, or {self._setting('timeout')} too short"
            raise self._error(path, f"did not answer within {seconds:g} s: {remedy}") from exc
        except httpx.ConnectError as exc:
            command = f" with `{self.provider.start}`" if self.provider.start else ""
            remedy = f"start it{command}, or set {self._setting('base_url')}"
            raise self._error(path, f"cannot be reached ({exc}): {remedy}") from exc
        except (httpx.RemoteProtocolError, httpx.ReadError) as exc:
            raise self._error(path, f"broke its reply off ({exc})") from exc
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as exc:  # RuntimeError: a closed client or event loop
            raise self._error(path, f"could not be asked ({exc})") from exc

    def _require_success(self, response: httpx.Response) -> None:
        path, status = response.url.path, response.status_code
        if response.has_redirect_location:
            target = response.headers["location"]
            remedy = f"set {self._setting('base_url')} to the server itself"
            raise self._error(path, f"answered {status}, a redirect to {target}: {remedy}", status)
        if not response.is_success:
            remedy = f" (set {self._setting('api_key')})" if status in (401, 403) else ""
            raise self._error(path, f"answered {status}: {_reason(response)}{remedy}", status)

    def _setting(self, name: str) -> str:
        """What remedies call it."""
        env_prefix = str(self.settings.model_config.get("env_prefix", ""))
        return f"its {name}" if self._is_upstream else f"{env_prefix}{name.upper()}"

    def _error(self, path: str, what: str, status: int | None = None) -> ModelError:
        url = self.root + path
        return ModelError(f"{self.title} at {url} {what}", self.settings.model_name, {"url": url, "status": status})


@dataclass(frozen=True, slots=True)
class Choice:
    model_id: str | None
    selected: str
    """Why it is this one: `configured`, `loaded`, `only one listed` or `first listed`; or `none listed`."""
    listed: list[str]


def _names_a_model(entry: object) -> bool:
    """What cannot be printed is no id either: half a surrogate pair, say, fits no JSON of ours."""
    model_id = entry.get("id") if isinstance(entry, dict) else None
    return isinstance(model_id, str) and model_id != "" and model_id.isprintable()


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        reply = response.json()
    except (ValueError, RecursionError):
        return {}
    return reply if isinstance(reply, dict) else {}


def _status_text(response: httpx.Response) -> str:
    """`ok`, of `{"status": "ok"}` as of the plain text."""
    status = _json_object(response).get("status")
    text = status if isinstance(status, str) else response.text.strip()
    return text[:_EXCERPT_CHARACTERS].lower() if text else "ok"


def _reason(response: httpx.Response) -> str:
    """Why the server refused, from the error object that it sends, as far as it has the shape of one."""
    reply = _json_object(response)
    error = reply.get("error", reply.get("status", reply.get("detail")))
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else response.text.strip()
    return text[:_EXCERPT_CHARACTERS] if text else response.reason_phrase
