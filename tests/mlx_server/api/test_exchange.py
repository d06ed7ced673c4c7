"""The id of a request, and what is counted of it, where something breaks in the app itself."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.main import create_app

NEW_ID = re.compile(r"[0-9a-f]{32}")


class Breaking:
    """A middleware with a defect."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/broken/middleware":
            raise RuntimeError("the middleware broke")
        await self._app(scope, receive, send)


@pytest.fixture
def app() -> FastAPI:
    app = create_app(MLXServerSettings(logfire_enabled=False))
    app.add_middleware(Breaking)

    @app.get("/broken/route/{number}")
    async def broken(number: int) -> None:
        raise RuntimeError("the route broke")

    return app


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/metrics", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/chat/completions", 422),
        ("GET", "/v1/models", 503),
        ("GET", "/broken/route/7", 500),
        ("GET", "/broken/middleware", 500),
    ],
)
def test_every_answer_has_the_requests_id(client: TestClient, method: str, path: str, status: int) -> None:
    own = client.request(method, path, headers={"X-Request-ID": "my.id_7-A"})
    assert (own.status_code, own.headers.get_list("x-request-id")) == (status, ["my.id_7-A"])
    assert NEW_ID.fullmatch(client.request(method, path).headers["x-request-id"])


@pytest.mark.parametrize(
    "given", [b"", b"two words", b"x" * 129, b"<script>", b"a\tb", b"caf\xc3\xa9", b"id;admin=1", b'"quoted"']
)
def test_an_id_that_could_do_harm_is_replaced(client: TestClient, given: bytes) -> None:
    response = client.get("/health", headers={b"x-request-id": given})
    assert NEW_ID.fullmatch(response.headers["x-request-id"])


def test_requests_that_broke_are_counted_and_told(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "mlx_manager.access"):
        client.get("/broken/route/7?key=sk-1")
        client.get("/broken/middleware")
    lines = [record.getMessage() for record in caplog.records if record.name == "mlx_manager.access"]
    assert [line.partition("s error=RuntimeError id=")[0].split()[:3] for line in lines] == [
        ["500", "GET", "/broken/route/7"],
        ["500", "GET", "/broken/middleware"],
    ]
    text = client.get("/metrics").text
    assert 'mlx_server_requests_total{endpoint="/broken/route/{number}",model="",status="500"} 1.0' in text
    assert 'mlx_server_requests_total{endpoint="other",model="",status="500"} 1.0' in text


def test_two_servers_in_one_process_count_apart(client: TestClient) -> None:
    client.get("/nowhere")
    other = TestClient(create_app(MLXServerSettings(logfire_enabled=False)))
    assert 'status="404"' in client.get("/metrics").text
    assert 'status="404"' not in other.get("/metrics").text
