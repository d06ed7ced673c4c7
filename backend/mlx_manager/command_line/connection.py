"""A client's view of a server: its address and its HTTP answers. Knows nothing of the server's code."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from mlx_manager.command_line.console import USAGE, CommandFailed
from mlx_manager.proxies import UnusableProxy, client_for

T = TypeVar("T")
ANSWER_SECONDS = 30
EXCERPT_CHARACTERS = 500
_ANY_ADDRESS = {"", "0.0.0.0", "::"}


class ServerUnreachable(CommandFailed):
    """No server answers at the address."""


class ServerRefused(CommandFailed):
    """The server answered with an error. `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Server:
    """`root` is the address without `/v1`."""

    root: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def get(self, path: str, timeout_seconds: float = ANSWER_SECONDS) -> Any:
        """The JSON at `path`. Raises ServerUnreachable and ServerRefused."""
        with self._failures_named(), self.client(httpx.Client, timeout=timeout_seconds) as client:
            response = client.get(self.root + path)
            if not response.is_success:
                raise refusal(response, self.root)
            return _json(response, self.root + path)

    def models(self) -> list[dict[str, Any]]:
        reply = self.get("/v1/models")
        listed = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(listed, list) or not all(
            isinstance(m, dict) and isinstance(m.get("id"), str) for m in listed
        ):
            raise CommandFailed(f"{self.root}/v1/models did not answer with a list of models. Check --base-url.")
        return listed

    def a_model(self) -> str:
        """The id of a loaded model that generates, else of the first one in the list."""
        listed = [model for model in self.models() if model.get("kind") in (None, "generate")]
        if not listed:
            raise CommandFailed(f"The server at {self.root} lists no models that generate. Specify one with --model.")
        return str(next((model for model in listed if model.get("loaded")), listed[0])["id"])

    def serves(self, model: str) -> bool:
        try:
            self.get(f"/v1/models/{quote(model, safe='/')}")
        except ServerRefused as exc:
            if exc.status == 404:
                return False
            raise
        return True

    @contextlib.contextmanager
    def post_stream(self, path: str, body: dict[str, object]) -> Iterator[httpx.Response]:
        """The response to `body`, before its content is read. Leaving the block ends the request."""
        timeout = httpx.Timeout(ANSWER_SECONDS, read=None)  # the server may load a model first
        with self._failures_named(), self.client(httpx.Client, timeout=timeout) as client:  # noqa: SIM117
            with client.stream("POST", self.root + path, json=body) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response, self.root)
                yield response

    def client(self, make: Callable[..., T], **options: object) -> T:
        """Raises CommandFailed if the environment's proxy for the server cannot be used."""
        try:
            return client_for(self.root, make, headers=self.headers, **options)
        except UnusableProxy as exc:
            raise CommandFailed(str(exc)) from exc

    @contextlib.contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as exc:
            raise ServerUnreachable(
                f"No server answers at {self.root} ({exc}). Start one with `mlx-manager serve`, or give --base-url."
            ) from exc
        except httpx.HTTPError as exc:
            raise CommandFailed(
                f"The server at {self.root} closed the connection: {str(exc) or type(exc).__name__}. Check its log."
            ) from exc


def find_server(base_url: str | None, api_key: str | None = None) -> Server:
    """The server at `base_url`, else the one of this machine's settings. Does not check whether it runs."""
    if base_url is None:
        from mlx_manager.mlx_server.config import mlx_server_settings

        root = local_root(mlx_server_settings.host, mlx_server_settings.port)
        return Server(root, api_key if api_key is not None else key_of_settings())
    from mlx_manager.providers.base import ModelError, server_root

    try:
        return Server(server_root(base_url), api_key)
    except ModelError as exc:
        raise CommandFailed(f"--base-url: {exc}", USAGE) from exc


def key_of_settings() -> str | None:
    """The key for the server of this machine's settings: the admin key, else the first user's.

    Not for a server that `--base-url` names.
    """
    from mlx_manager.mlx_server.config import mlx_server_settings as settings

    if settings.admin_key is not None:
        return settings.admin_key.get_secret_value()
    return next((key.key.get_secret_value() for key in settings.all_api_keys()), None)


def local_root(host: str, port: int) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    reachable = "127.0.0.1" if host in _ANY_ADDRESS else host
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"


def refusal(response: httpx.Response, root: str) -> ServerRefused:
    """The error message of a response that has been read."""
    return ServerRefused(f"{root} answered {response.status_code}: {error_message(response)}", response.status_code)


def error_message(response: httpx.Response) -> str:
    """The message of OpenAI's error envelope, else an excerpt of the body."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text.strip()
    return str(message)[:EXCERPT_CHARACTERS] or response.reason_phrase


def _json(response: httpx.Response, url: str) -> Any:
    try:
        return response.json()
    except ValueError as exc:
        raise CommandFailed(
            f"{url} did not answer with JSON: {response.text[:EXCERPT_CHARACTERS]!r}. Check --base-url."
        ) from exc
