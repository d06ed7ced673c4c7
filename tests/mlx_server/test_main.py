"""The app without a lifespan, and the lifespan without a server."""

import json

import pytest
from fastapi.testclient import TestClient

from mlx_manager.mlx_server import __version__
from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.main import app, create_app

GOOD_BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(app)


def test_health_needs_no_lifespan(client: TestClient) -> None:
    response = client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "healthy", "version": __version__})


def test_without_a_lifespan_the_server_is_not_ready(client: TestClient) -> None:
    assert client.get("/ready").status_code == 503
    for method, path, body in [
        ("POST", "/v1/chat/completions", GOOD_BODY),
        ("POST", "/v1/completions", {"model": "demo", "prompt": "Hi"}),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/demo", None),
    ]:
        response = client.request(method, path, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 5.0}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": ["x"] * 33}, "stop"),
        ({"stream": "perhaps"}, "stream"),
        ({"stream_options": {"include_usage": 3}}, "stream_options.include_usage"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]},
            "messages[0].content[0].text",
        ),
        ({"max_tokens": 2**64}, "max_tokens"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ],
)
def test_body_that_breaks_the_schema_is_refused_with_the_field_named(
    client: TestClient, change: dict[str, object], param: str
) -> None:
    content = json.dumps(GOOD_BODY | change)
    response = client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (422, "invalid_request_error", param)
    assert error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"temperature": NaN}', b"[" * 10**5, b"9" * 5000]
)
def test_body_that_is_no_json_object_is_refused_in_the_envelope(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_body_without_the_json_content_type_is_told_which_header_to_send(client: TestClient) -> None:
    form = {"content-type": "text/plain"}
    response = client.post("/v1/chat/completions", content='{"model": "demo"}', headers=form)
    assert response.status_code == 422
    assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_validation_status_can_be_openais_own() -> None:
    strict = TestClient(create_app(MLXServerSettings(validation_error_status=400, logfire_enabled=False)))
    assert strict.post("/v1/chat/completions", json=GOOD_BODY | {"temperature": 5.0}).status_code == 400


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2", 404), ("GET", "/v1/chat/completions", 405)])
def test_unknown_paths_and_methods_answer_in_the_envelope(
    client: TestClient, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert path in response.json()["error"]["message"]
