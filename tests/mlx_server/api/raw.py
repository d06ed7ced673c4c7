"""Bytes on a socket, for what no HTTP client would send."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.running_server import HANG_SECONDS, RunningServer


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """Of the error envelope."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert error["message"]
        return str(error["code"])


@contextlib.contextmanager
def connected(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection((server.host, server.port), HANG_SECONDS) as connection:
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """Until the server ends the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(2**16):
            received += chunk
    return received


def send_slowly(connection: socket.socket, data: bytes, pause_seconds: float) -> int:
    """Sends a byte at a time until the server ends the connection; returns how many it sent."""
    sent = 0
    with contextlib.suppress(OSError):
        for byte in data:
            connection.sendall(bytes([byte]))
            sent += 1
            time.sleep(pause_seconds)
    return sent


def replies(received: bytes) -> list[Reply]:
    """All of the connection's, each with a content-length."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"])
        found.append(Reply(int(status_line.split()[1]), headers, rest[:length]))
        received = rest[length:]
    return found


def exchange(server: RunningServer, *parts: bytes) -> Reply:
    """The one reply to all that is sent, after which the server must have ended the connection."""
    with connected(server) as connection:
        for part in parts:
            with contextlib.suppress(ConnectionError):
                connection.sendall(part)
        (reply,) = replies(read_to_end(connection))
        return reply


def request(method: str, path: str, *headers: str, body: bytes = b"", host: str | None = "localhost") -> bytes:
    """It asks the server to end the connection."""
    lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body


def post(path: str, body: bytes, *headers: str) -> bytes:
    return request("POST", path, "Content-Type: application/json", f"Content-Length: {len(body)}", *headers, body=body)
