"""Paths as clients write them, to the real server."""

import httpx
import pytest

from tests.running_server import RunningServer

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Count to 3"}]}


def url_of(server: RunningServer, path: str) -> str:
    return f"{server.url}{path}"


@pytest.mark.parametrize("path", ["/v1/models/", "/v1//models", "//v1/models", "/v1///models//", "/v1/models?limit=5"])
def test_slashes_too_many_do_not_matter(server: RunningServer, path: str) -> None:
    response = httpx.get(url_of(server, path))
    assert response.status_code == 200
    assert "demo" in [model["id"] for model in response.json()["data"]]


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "//v1/chat/completions", "/v1//chat/completions"])
def test_a_body_is_read_at_once_and_not_sent_elsewhere(server: RunningServer, path: str) -> None:
    response = httpx.post(url_of(server, path), json=CHAT, follow_redirects=False)
    assert response.status_code == 200


def test_a_models_id_keeps_its_slashes(server: RunningServer) -> None:
    assert httpx.get(url_of(server, "/v1/models/demo/")).json()["id"] == "demo"
    missing = httpx.get(url_of(server, "/v1//models/no/such%2Fmodel/"))
    assert "no/such/model" in missing.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/chat/completions", "/models", "/completions", "/v1/v1/models", "/api/chat", "/v1", "/"]
)
def test_an_unknown_path_is_answered_with_where_the_endpoints_are(server: RunningServer, path: str) -> None:
    response = httpx.post(url_of(server, path), json=CHAT)
    assert response.status_code == 404
    assert "ends with /v1" in response.json()["error"]["message"]
    assert path in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/demo", "/admin/pool", "/openapi.json", "/docs"]
)
def test_head_is_answered_where_get_is(server: RunningServer, path: str) -> None:
    response = httpx.head(url_of(server, path))
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == httpx.get(url_of(server, path)).headers["content-type"]


def test_head_of_what_is_not_there_fails_as_get_does(server: RunningServer) -> None:
    assert httpx.head(url_of(server, "/v1/models/nobody")).status_code == 404
    assert httpx.head(url_of(server, "/v1/chat/completions")).status_code == 405


def test_the_log_has_the_request_as_it_came(server: RunningServer) -> None:
    httpx.head(url_of(server, "/v1//models//"))
    server.wait_for_log("200 HEAD /v1//models// ")
