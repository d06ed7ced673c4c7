"""Which names and web pages are let in: the real server on loopback; in-process where its address has to be another."""

import httpx
import pytest
from fastapi.testclient import TestClient

from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.main import create_app
from tests.mlx_server.api.conftest import ADMIN, ANNA
from tests.mlx_server.api.raw import Reply, connected, exchange, read_to_end, replies, request
from tests.running_server import RunningServer


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LocalHost.", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:80",
             "[::ffff:127.0.0.1]", "host.docker.internal:8000", "Gateway.Docker.internal", "host.containers.internal:1"]
)  # fmt: skip
def test_names_of_this_machine_are_answered(server: RunningServer, host: str) -> None:
    assert exchange(server, request("GET", "/health", host=host)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "",
             "[::2]", "[", "localhost@evil.example", "\xe9", "0.0.0.0", "localhost, evil.example",
             "docker.internal", "evil.docker.internal", "host.docker.internal.evil.example"]
)  # fmt: skip
def test_another_name_is_refused_with_the_remedy(server: RunningServer, host: str) -> None:
    reply = exchange(server, request("GET", "/health", host=host))
    assert (reply.status, reply.code) == (421, "host_not_allowed")
    assert b"MLX_SERVER_ALLOWED_HOSTS" in reply.body


def test_a_request_has_one_host_header(server: RunningServer) -> None:
    assert exchange(server, request("GET", "/health", "Host: localhost")).status == 421
    assert exchange(server, request("GET", "/health", host=None)).status == 421
    assert exchange(server, b"GET /health HTTP/1.0\r\n\r\n").status == 200


@pytest.mark.parametrize(
    ("address", "allowed", "host", "status"),
    [
        ("127.0.0.1", "gpu.lan", "gpu.lan", 200),
        ("127.0.0.1", "GPU.lan", "localhost", 200),
        ("127.0.0.1", "gpu.lan", "evil.example", 421),
        ("127.0.0.1", "*", "evil.example", 200),
        ("10.0.0.7", "", "any.example", 200),
        ("10.0.0.7", "gpu.lan", "gpu.lan", 200),
        ("10.0.0.7", "gpu.lan", "10.0.0.7", 421),
        ("testserver", "", "any.example", 200),
    ],
)
def test_the_setting_names_more_hosts(address: str, allowed: str, host: str, status: int) -> None:
    app = create_app(MLXServerSettings(allowed_hosts=allowed.split(",") if allowed else [], logfire_enabled=False))
    client = TestClient(app, base_url=f"http://{address}")
    assert client.get("/health", headers={"Host": host}).status_code == status


def test_admin_is_closed_at_an_address_of_the_network_without_any_key() -> None:
    app = create_app(MLXServerSettings(logfire_enabled=False))
    assert TestClient(app, base_url="http://10.0.0.7").get("/admin/pool").status_code == 403
    assert TestClient(app, base_url="http://127.0.0.1").get("/admin/pool").status_code == 503
    meant = create_app(MLXServerSettings(insecure_no_auth=True, logfire_enabled=False))
    assert TestClient(meant, base_url="http://10.0.0.7").get("/admin/pool").status_code == 503


PIN = "/admin/models/demo/pin"
FOREIGN = [
    "https://evil.example", "null", "", "http://localhost", "http://localhost:8001", "http://127.0.0.1:8000",
    "http://localhost.:8000", "http://[::1]:8000", "ftp://localhost:8000", "app://localhost:8000", "app://obsidian.md",
    "vscode-webview://0a1b", "file://", "chrome-extension://abcdef", "http://localhost:8000@evil.example",
    "http://evil.example/localhost:8000", "http://localhost:8000, http://evil.example", "http://localhost:80001",
    "http://localhost:8000.evil.example", "localhost:8000", "http://", "\xe9", "http://localhost:" + "9" * 5000,
]  # fmt: skip


def posted(server: RunningServer, *headers: str, host: str = "localhost:8000", path: str = PIN) -> Reply:
    return exchange(server, request("POST", path, *headers, host=host))


def is_pinned(server: RunningServer) -> bool:
    models = httpx.get(f"{server.url}/admin/pool").json()["models"]
    return bool(next(model["pinned"] for model in models if model["id"] == "demo"))


@pytest.mark.parametrize("origin", FOREIGN, ids=lambda origin: origin[:40])
def test_a_foreign_page_changes_nothing(server: RunningServer, origin: str) -> None:
    reply = posted(server, f"Origin: {origin}", "Content-Type: text/plain", "Sec-Fetch-Site: same-origin")
    assert (reply.status, reply.code) == (403, "origin_not_allowed")
    assert b"MLX_SERVER_CORS_ORIGINS" in reply.body
    assert not is_pinned(server)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE"])
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/models", "/health", "/nowhere", "//admin/reload", "/docs"]
)
def test_no_route_takes_an_unsafe_method_of_a_foreign_page(server: RunningServer, method: str, path: str) -> None:
    reply = exchange(server, request(method, path, "Origin: https://evil.example", host="localhost"))
    assert (reply.status, reply.code) == (403, "origin_not_allowed")


def test_the_page_is_refused_before_its_host_body_and_key_are_looked_at(guarded: RunningServer) -> None:
    headers = ["Origin: https://evil.example", "Content-Type: application/json", f"Content-Length: {2**40}"]
    for host in ("localhost", "evil.example:8000"):
        assert posted(guarded, *headers, "x-api-key: wrong", host=host).code == "origin_not_allowed"


@pytest.mark.parametrize(
    ("sites", "status"),
    [(["cross-site"], 403), (["Cross-Site "], 403), (["none", "cross-site"], 403), (["same-origin"], 404),
     (["same-site"], 404), (["none"], 404)],
)  # fmt: skip
def test_without_an_origin_the_browser_says_whether_the_page_is_foreign(
    server: RunningServer, sites: list[str], status: int
) -> None:
    assert posted(server, *(f"Sec-Fetch-Site: {site}" for site in sites), path="/nowhere").status == status


@pytest.mark.parametrize(
    ("host", "origin"),
    [("localhost:8000", "http://localhost:8000"), ("LocalHost:8000", "HTTP://LOCALHOST:8000"),
     ("localhost", "http://localhost"), ("localhost", "http://localhost:80"), ("localhost:80", "http://localhost"),
     ("[::1]:8000", "http://[::1]:8000"), ("[::1]", "http://[::1]:80"), ("localhost", "https://localhost"),
     ("localhost:443", "https://localhost"), ("localhost.:8000", "http://localhost.:8000")],
)  # fmt: skip
def test_the_servers_own_pages_are_let_in(server: RunningServer, host: str, origin: str) -> None:
    own = posted(server, f"Origin: {origin}", "Sec-Fetch-Site: same-origin", host=host, path="/nowhere")
    assert own.status == 404


def test_every_one_of_several_origins_has_to_be_allowed(server: RunningServer) -> None:
    own = "Origin: http://localhost:8000"
    assert posted(server, own, own, path="/nowhere").status == 404
    assert posted(server, own, "Origin: https://evil.example").status == 403
    assert posted(server, "Origin: null", own).status == 403


def test_no_origin_is_the_servers_own_where_the_host_is_not_one(server: RunningServer) -> None:
    with connected(server) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.0\r\nOrigin: http://localhost\r\n\r\n")
        assert replies(read_to_end(connection))[0].code == "origin_not_allowed"
    assert posted(server, "Origin: http://localhost:8000", "Host: localhost:8000").code == "origin_not_allowed"


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "HEAD"])
def test_a_foreign_page_may_ask_what_changes_nothing_and_reads_no_answer(server: RunningServer, method: str) -> None:
    headers = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    response = httpx.request(method, f"{server.url}/health", headers=headers)
    assert response.status_code in (200, 405)
    assert "access-control-allow-origin" not in response.headers


def test_a_key_of_the_server_lets_a_foreign_page_in(guarded: RunningServer) -> None:
    page = "Origin: app://obsidian.md"
    for header in (f"x-api-key: {ANNA}", f"Authorization: Bearer {ANNA}", f"authorization: bearer {ADMIN}"):
        assert posted(guarded, page, header, path="/nowhere").status == 404
    for header in ("x-api-key: not-needed", f"Authorization: Basic {ANNA}", f"Cookie: {ANNA}"):
        assert posted(guarded, page, header, path="/nowhere").code == "origin_not_allowed"


def test_without_keys_no_key_lets_a_foreign_page_in(server: RunningServer) -> None:
    assert posted(server, "Origin: null", "Authorization: Bearer not-needed").code == "origin_not_allowed"


@pytest.mark.parametrize(
    ("listed", "origin", "is_let_in"),
    [
        ("https://chat.example", "https://chat.example", True),
        ("https://Chat.example:443/", "https://chat.example", True),
        ("https://chat.example", "https://chat.example.evil.example", False),
        ("https://chat.example", "https://chatxexample", False),
        ("https://chat.example", "http://chat.example", False),
        ("https://chat.example", "null", False),
        ("null", "null", True),
        ("app://obsidian.md", "app://obsidian.md", True),
        ("vscode-webview://*", "vscode-webview://1b2c-3d", True),
        ("vscode-webview://*", "app://1b2c-3d", False),
        ("http://localhost:*", "http://localhost:5173", True),
        ("file://", "file://", True),
        ("*", "https://any.example", True),
        ("*", "null", True),
    ],
)
def test_the_setting_lets_pages_in(listed: str, origin: str, is_let_in: bool) -> None:
    app = create_app(MLXServerSettings(cors_origins=[listed], logfire_enabled=False))
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    response = client.post("/admin/reload", headers={"Origin": origin})
    assert response.status_code == (503 if is_let_in else 403)  # without a lifespan there is nothing to reload
    assert response.headers.get("access-control-allow-origin") == (origin if is_let_in else None)
