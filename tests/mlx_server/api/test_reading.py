"""Where bodies are read: on the event loop, or in a thread where they are large. The same is made of both."""

import threading
from typing import Annotated

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import AfterValidator, BaseModel

from mlx_manager.mlx_server.api.errors import install_error_handlers
from mlx_manager.mlx_server.api.exchange import ExchangeMiddleware
from mlx_manager.mlx_server.api.reading import SMALL_BYTES, JsonRoute, converted
from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.observability import Metrics, RecentRequests
from mlx_manager.mlx_server.protocols.base import Protocols
from mlx_manager.mlx_server.protocols.chat import ChatCompletions


def _noting_thread(text: str) -> str:
    return f"{len(text)} characters, validated in {threading.current_thread().name}"


class Body(BaseModel):
    text: Annotated[str, AfterValidator(_noting_thread)]


@pytest.fixture
def client() -> TestClient:
    router = APIRouter(route_class=JsonRoute)

    @router.post("/read")
    async def read(body: Body, request: Request) -> dict[str, str]:
        converter = await converted(request, lambda: threading.current_thread().name)
        return {"text": body.text, "loop": threading.current_thread().name, "converter": converter}

    app = FastAPI()
    app.include_router(router)
    install_error_handlers(app)
    app.state.bounds = Bounds()
    app.state.protocols = Protocols([ChatCompletions()])
    metrics, recent = Metrics(lambda model_id: False), RecentRequests()
    app.add_middleware(ExchangeMiddleware, metrics=metrics, recent=recent, paths=[], spans=False)
    return TestClient(app)


def test_a_small_body_is_read_where_it_comes(client: TestClient) -> None:
    answer = client.post("/read", json={"text": "Hi"}).json()
    assert answer["text"] == f"2 characters, validated in {answer['loop']}"
    assert answer["converter"] == answer["loop"]


def test_a_large_body_is_read_and_converted_in_a_thread(client: TestClient) -> None:
    answer = client.post("/read", json={"text": "x" * SMALL_BYTES}).json()
    assert answer["text"].startswith(f"{SMALL_BYTES} characters")
    assert not answer["text"].endswith(answer["loop"])
    assert answer["converter"] != answer["loop"]


@pytest.mark.parametrize("padding", [0, SMALL_BYTES])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"text": 5}', "text: Input should be a valid string"),
        ('{"text": "a", "text": "b"}', "text: duplicate key 'text' in a JSON object"),
        ('{"text": "a"', "The body is not valid JSON: Expecting ',' delimiter at character "),
        ("[]", "The body is not a JSON object"),
    ],
)
def test_faults_are_the_same_however_large_the_body_is(
    client: TestClient, body: str, message: str, padding: int
) -> None:
    response = client.post("/read", content=body + " " * padding)
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith(message)
