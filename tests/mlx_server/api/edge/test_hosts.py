"""The Host header, to the real server on loopback; and in-process where the address of the server has to be another."""

import pytest
from fastapi.testclient import TestClient

from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.main import create_app
from tests.mlx_server.api.edge.raw import exchange, request
from tests.running_server import RunningServer


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LocalHost.", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:80",
             "[::ffff:127.0.0.1]"]
)  # fmt: skip
def test_names_of_this_machine_are_answered(server: RunningServer, host: str) -> None:
    assert exchange(server, request("GET", "/health", host=host)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "",
             "[::2]", "[", "localhost@evil.example", "\xe9", "0.0.0.0", "localhost, evil.example"]
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
