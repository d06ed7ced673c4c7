"""An OpenAI server whose models each answer with a fault of their own, for what no real server does when asked to."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EVENT_STREAM = {"Content-Type": "text/event-stream"}
DONE = b"data: [DONE]\n\n"
NO_MODELS = [None, "model", {"object": "model"}, {"id": 7}, {"id": ""}, {"id": "\ud800"}]
"""Entries of a list of models that name none; each list begins with them."""


def sse(chunk: object) -> bytes:
    return b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\n\n"


def piece(text: str, index: int = 0, finish_reason: str | None = None) -> bytes:
    return sse({"choices": [{"index": index, "text": text, "finish_reason": finish_reason}]})


@dataclass(frozen=True)
class Answer:
    """`body` is sent piece by piece, each when it may be, and then the connection closes."""

    body: tuple[bytes, ...] = ()
    status: int = 200
    """0 closes the connection without a byte."""
    headers: Mapping[str, str] = field(default_factory=lambda: EVENT_STREAM)
    missing_bytes: int = 0
    """Announced and never sent."""
    hangs: bool = False
    """Neither goes on nor ends until the client leaves: before the headers where there is no body."""
    waits: bool = False
    """Each piece but the first waits for `FaultyUpstream.go_on`."""
    keeps: bool = False
    """The connection stays open, and closes at its next request without a byte of an answer."""


def error(status: int, headers: Mapping[str, str] | None = None, **fields: object) -> Answer:
    body = json.dumps({"error": fields}).encode()
    return Answer((body,), status, {"Content-Type": "application/json", **(headers or {})})


@dataclass
class FaultyUpstream:
    url: str
    answers: dict[str, Answer]
    """By model."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    go_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    asked: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Models whose client left while they hung."""


@contextlib.contextmanager
def faulty_upstream(answers: Mapping[str, Answer], port: int = 0) -> Iterator[FaultyUpstream]:
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        kept = False

        def do_GET(self) -> None:
            entries = [*NO_MODELS, *({"id": model} for model in upstream.answers)]
            content = json.dumps({"data": entries}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            upstream.bodies.append(body)
            upstream.keys.append(self.headers["Authorization"])
            upstream.asked.append(body["model"])
            answer = upstream.answers[body["model"]]
            was_kept, self.kept = self.kept, answer.keeps
            self.close_connection = was_kept or not answer.keeps
            if not was_kept and answer.status:
                with contextlib.suppress(OSError):
                    self.answer(body["model"], answer)

        def answer(self, model: str, answer: Answer) -> None:
            if answer.body or not answer.hangs:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.missing_bytes or answer.keeps:
                    self.send_header("Content-Length", str(sum(map(len, answer.body)) + answer.missing_bytes))
                self.end_headers()
            for number, part in enumerate(answer.body):
                if number and answer.waits:
                    assert upstream.go_on.acquire(timeout=30)
                self.wfile.write(part)
            if answer.hangs:
                self.hang(model)

        def hang(self, model: str) -> None:
            self.connection.settimeout(0.02)
            while not over.is_set():
                try:
                    here = self.connection.recv(1) != b""
                except TimeoutError:
                    continue
                except ConnectionResetError:
                    here = False
                if not here:
                    upstream.left.append(model)
                    return

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as httpd:
        httpd.daemon_threads = True
        upstream = FaultyUpstream(f"http://127.0.0.1:{httpd.server_port}", dict(answers))
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield upstream
        finally:
            over.set()
            httpd.shutdown()
            thread.join()
