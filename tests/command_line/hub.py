"""A Hugging Face hub on this machine: one repo, and a connection that may stall in the middle of a file."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.local_http import local_server

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/small-model"


@dataclass
class Hub:
    """Of the weights `stall_at` bytes go out before the hub falls silent, and sets `stalled`; after `break_at` it hangs
    up, once."""

    files: dict[str, bytes]
    url: str = ""
    stall_at: int | None = None
    break_at: int | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    begins: list[int] = field(default_factory=list)
    """From which byte on the weights were asked for."""
    sent: list[str] = field(default_factory=list)
    """The files that went out."""

    def info(self) -> dict[str, object]:
        siblings = [{"rfilename": name} for name in self.files]
        return {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "gated": False}

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.files.items()
        ]


@contextlib.contextmanager
def running_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with local_server(Handler) as hub.url:
        try:
            yield hub
        finally:
            hub.closing.set()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPO}/tree/"):
            self._json(200, self.hub.tree())
        elif path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            self._json(200, self.hub.info())
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._file(path.rpartition("/")[2], with_body)
        elif path.startswith("/api/models/gated/"):
            self._json(403, {"error": "accept the terms"}, "GatedRepo")
        elif path.startswith("/api/models/down/"):
            self._json(500, {"error": "out of order"})
        else:
            code = "RevisionNotFound" if path.startswith(f"/api/models/{REPO}") else "RepoNotFound"
            self._json(404, {"error": "not found"}, code)

    def _json(self, status: int, body: object, error_code: str | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        if error_code is not None:
            self.send_header("X-Error-Code", error_code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _file(self, name: str, with_body: bool) -> None:
        content = self.hub.files[name]
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if with_body:
            self._send(name, content[begin:], begin)

    def _send(self, name: str, content: bytes, begin: int) -> None:
        self.hub.sent.append(name)
        if not name.endswith(".safetensors"):
            self.wfile.write(content)
            return
        self.hub.begins.append(begin)
        with contextlib.suppress(ConnectionError):
            if self.hub.break_at is not None:
                self.wfile.write(content[: self.hub.break_at])
                self.hub.break_at, self.close_connection = None, True
                return
            self.wfile.write(content[: self.hub.stall_at])
            if self.hub.stall_at is not None:
                self.hub.stalled.set()
                self.hub.closing.wait()
