"""Who is let in, over HTTP: by servers with API keys and an admin key, with API keys alone, and without any."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.mlx_server.api.conftest import ADMIN, ANNA
from tests.running_server import RunningServer, running_server

EVERYWHERE = [
    "/v1/models",
    "/v1/chat/completions",
    "/admin/pool",
    "/docs",
    "/openapi.json",
    "/nowhere",
    "/",
    "//v1//models/",
]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def users_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """API keys, and no admin key."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "mlx-manager.toml").write_text('api_keys = ["anna=sk-anna-7041", "sk-other"]')
    with running_server(folder, wait=False) as running:
        running.wait_for_log("Listening")
        yield running


@pytest.mark.parametrize("path", EVERYWHERE)
@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), {"Authorization": "Bearer"}, bearer(ANNA + "x"), bearer(ANNA[:-1]), {"Authorization": ANNA},
     {"Authorization": f"Basic {ANNA}"}, {"x-api-key": "anna=" + ANNA}, {"x-api-key": "\xe9".encode("latin-1")}],
)  # fmt: skip
def test_nothing_is_answered_without_a_known_key(guarded: RunningServer, path: str, headers: dict[str, str]) -> None:
    response = httpx.get(f"{guarded.url}{path}", headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (401, "invalid_request_error", "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer" in error["message"]


@pytest.mark.parametrize(
    "headers",
    [bearer(ANNA), {"authorization": f"bEARER  {ANNA}"}, {"x-api-key": ANNA}, bearer("sk-bob-3390"),
     bearer("sk-nameless=="), {"x-api-key": ANNA, "Authorization": "Bearer not-needed"}, bearer(ADMIN)],
)  # fmt: skip
def test_a_known_key_opens_the_endpoints(guarded: RunningServer, headers: dict[str, str]) -> None:
    for path in ("/v1/models", "/docs", "/openapi.json", "/metrics"):
        assert httpx.get(f"{guarded.url}{path}", headers=headers).status_code == 200


def test_health_and_the_bare_status_are_open(guarded: RunningServer) -> None:
    assert httpx.get(f"{guarded.url}/health").status_code == 200
    assert httpx.get(f"{guarded.url}/ready").json() == {"status": "ready"}
    assert httpx.get(f"{guarded.url}/ready", headers=bearer("wrong")).json() == {"status": "ready"}
    assert httpx.get(f"{guarded.url}/ready", headers=bearer(ANNA)).json() == {"status": "ready", "model": "demo"}


def test_an_api_key_is_not_the_admin_key(guarded: RunningServer, users_only: RunningServer) -> None:
    refused = httpx.get(f"{guarded.url}/admin/pool", headers=bearer(ANNA))
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(f"{guarded.url}/admin/pool", headers=bearer(ADMIN)).status_code == 200
    closed = httpx.get(f"{users_only.url}/admin/pool", headers=bearer(ANNA))
    assert (closed.status_code, closed.json()["error"]["code"]) == (403, "admin_closed")
    assert "MLX_SERVER_ADMIN_KEY" in closed.json()["error"]["message"]


def test_without_keys_the_local_server_is_open(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/admin/pool", headers=bearer("whatever")).status_code == 200


def test_keys_stand_in_no_log(guarded: RunningServer) -> None:
    httpx.get(f"{guarded.url}/v1/models", headers=bearer("sk-mistyped-1"))
    httpx.get(f"{guarded.url}/v1/models", headers=bearer(ANNA))
    log = guarded.log.read_text()
    assert not [key for key in (ANNA, ADMIN, "sk-bob-3390", "sk-nameless", "sk-mistyped") if key in log]
    assert "chmod 600" in log


def test_the_openai_client_reads_the_refusal(guarded: RunningServer) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0).models.list()
    assert refused.value.code == "invalid_api_key"
    assert [model.id for model in openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=ANNA).models.list()]


def test_a_preflight_needs_no_key_and_strangers_get_no_leave(guarded: RunningServer) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    url = f"{guarded.url}/v1/chat/completions"
    allowed = httpx.options(url, headers={"Origin": "https://chat.example", **asked})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    refused = httpx.options(url, headers={"Origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in refused.headers
    answered = httpx.get(f"{guarded.url}/v1/models", headers={"Origin": "https://chat.example"})
    assert (answered.status_code, answered.headers["access-control-allow-origin"]) == (401, "https://chat.example")
    assert "x-request-id" in answered.headers["access-control-expose-headers"]


def test_cors_is_off_by_default(server: RunningServer) -> None:
    response = httpx.get(f"{server.url}/health", headers={"Origin": "https://chat.example"})
    assert "access-control-allow-origin" not in response.headers
