"""A server with keys and narrow limits, and one that lets everybody in."""

from collections.abc import Iterator

import pytest

from tests.running_server import RunningServer, running_server

ANNA, ADMIN = "sk-anna-7041", "sk-admin-5512"


@pytest.fixture(scope="package")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Keys of `anna` and, in a file, of `bob` and somebody without a name; limits that tests can reach."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "keys"
    file.write_text("# who may ask\nbob=sk-bob-3390\n\nsk-nameless==\n")
    file.chmod(0o644)
    with running_server(
        folder,
        api_keys=f"anna={ANNA}",
        api_keys_file=file,
        admin_key=ADMIN,
        cors_origins="https://chat.example",
        bounds={
            "max_body_bytes": 2**20,
            "header_timeout_seconds": 1,
            "body_timeout_seconds": 2,
            "max_connections": 12,
        },
    ) as running:
        yield running
