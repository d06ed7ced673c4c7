"""A protocol that only this file knows, served by the real app: no HTTP layer has to learn its wire format."""

import uuid
from collections.abc import Iterator

import pytest
from fastapi import APIRouter, Request, Response
from fastapi.testclient import TestClient
from pydantic import BaseModel

from mlx_manager.mlx_server.api.dependencies import State
from mlx_manager.mlx_server.api.reading import JsonRoute
from mlx_manager.mlx_server.api.respond import answer
from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.errors import UnsupportedParameter
from mlx_manager.mlx_server.main import create_app
from mlx_manager.mlx_server.protocols.base import ErrorReply, ParseOptions, Protocol, Writer
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.types import (
    ChatRequest,
    ChatTurn,
    Generation,
    GenerationEvent,
    SamplingOverrides,
    TextDelta,
)

ASK = {"say": "Count to 4"}


class Telegram(BaseModel):
    say: str
    loud: bool = False
    stream: bool = False


class TelegramWriter(Writer):
    def frames(self, event: GenerationEvent) -> list[bytes]:
        return [event.text.encode()] if isinstance(event, TextDelta) else []

    def response(self, generation: Generation) -> JsonObject:
        return {"said": generation.choices[0].text}

    def error_frame(self, error: Exception, request_id: str) -> bytes:
        return f" BROKEN {error}".encode()

    def end(self) -> bytes:
        return b" STOP"


class Telegraphy(Protocol[Telegram, ChatRequest]):
    paths = ("/v1/telegram",)

    def parse(self, body: Telegram, options: ParseOptions) -> ChatRequest:
        if body.loud:
            raise UnsupportedParameter("Telegrams are quiet: remove 'loud'.", param="loud")
        return ChatRequest(
            id=uuid.uuid4().hex,
            created=0,
            model="demo",
            sampling=SamplingOverrides(temperature=0),
            max_tokens=None,
            default_max_tokens=options.default_max_tokens,
            stop=(),
            include_usage=False,
            turns=(ChatTurn("user", body.say),),
        )

    def writer(self, request: ChatRequest) -> TelegramWriter:
        return TelegramWriter()

    def error(self, error: Exception, request_id: str) -> ErrorReply:
        return ErrorReply(418, {"fault": type(error).__name__, "at": request_id})


router = APIRouter(route_class=JsonRoute)


@router.post("/v1/telegram")
async def send_telegram(body: Telegram, request: Request, state: State) -> Response:
    return await answer(body, request, state)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(
        MLXServerSettings(logfire_enabled=False, rate_limit_requests_per_minute=20, api_keys="a-key"),
        Bounds(max_body_bytes=1000),
    )
    app.include_router(router)
    app.state.protocols.add(Telegraphy())
    with TestClient(app, headers={"x-api-key": "a-key"}) as running:
        yield running


def test_a_third_protocol_answers_whole_and_streamed(client: TestClient) -> None:
    assert client.post("/v1/telegram", json=ASK).json() == {"said": "1, 2, 3, 4"}
    streamed = client.post("/v1/telegram", json={**ASK, "stream": True})
    assert streamed.text == "1, 2, 3, 4 STOP"
    assert streamed.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("method", "content", "headers", "fault"),
    [
        ("POST", b'{"say": "Hi", "loud": true}', {}, "UnsupportedParameter"),
        ("POST", b'{"say": 5}', {}, "BrokenBody"),
        ("POST", b"{", {}, "BrokenBody"),
        ("POST", b"[" * 500, {}, "BrokenBody"),
        ("POST", b'{"say": "' + b"x" * 2000 + b'"}', {}, "RequestTooLarge"),
        ("POST", b"{}", {"content-encoding": "gzip"}, "UnsupportedEncoding"),
        ("POST", b"{}", {"x-api-key": "another"}, "NotAuthorized"),
        ("POST", b"{}", {"origin": "https://elsewhere.example", "x-api-key": ""}, "OriginNotAllowed"),
        ("GET", b"", {}, "MethodNotAllowed"),
    ],
)
def test_every_refusal_on_its_path_is_written_by_the_protocol(
    client: TestClient, method: str, content: bytes, headers: dict[str, str], fault: str
) -> None:
    sent = {"content-type": "application/json", **headers}
    response = client.request(method, "/v1/telegram", content=content, headers=sent)
    assert (response.status_code, response.json()["fault"]) == (418, fault)
    assert response.json()["at"] == response.headers["x-request-id"]


def test_other_paths_keep_their_protocol(client: TestClient) -> None:
    response = client.post("/v1/chat/completions", json={})
    assert (response.status_code, response.json()["error"]["param"]) == (422, "model")


def test_rate_limits_count_its_requests(client: TestClient) -> None:
    refused = [client.post("/v1/telegram", json={}).json()["fault"] for _ in range(21)]
    assert "RequestRateExceeded" in refused
