"""A small HTTP server that gives recorded replies, where a real server cannot be had or a fault must be staged."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODELS = {
    "object": "list",
    "data": [{"id": "../models/Llama-3.1-8B-Q4_K_M.gguf", "object": "model", "created": 1735142223, "meta": None}],
}
HEALTHY = {"status": "ok"}
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
NO_SLOTS = {
    "error": {"code": 501, "message": "This server does not support slots endpoint.", "type": "not_supported_error"}
}
SLOTS = [
    {
        "id": slot,
        "id_task": 135,
        "n_ctx": 65536,
        "speculative": False,
        "is_processing": slot == 0,
        "params": {"n_predict": -1, "temperature": 0.800000011920929, "stream": True, "samplers": ["top_k", "min_p"]},
        "next_token": {"has_next_token": True, "has_new_line": False, "n_remain": -1, "n_decoded": 136},
    }
    for slot in (0, 1)
]
PROPS = {
    "default_generation_settings": {"id": 0, "id_task": -1, "n_ctx": 1024, "params": {"n_predict": -1}},
    "total_slots": 2,
    "model_path": "../models/Llama-3.1-8B-Q4_K_M.gguf",
    "chat_template": "...",
    "chat_template_caps": {},
    "modalities": {"vision": False},
    "build_info": "b8681-Debian",
    "is_sleeping": False,
}
"""llama-server's, from its README of 2026, shortened where it lists every sampler."""


@dataclass(frozen=True)
class Reply:
    body: object
    """Text and bytes are sent as they are, all else as JSON."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    missing_bytes: int = 0
    """Announced and never sent: the connection closes before them."""

    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


class Silence:
    """The request is never answered."""


class Drip:
    """A byte now and then, and never the last one."""


Route = Reply | Silence | Drip


@dataclass
class StandIn:
    url: str
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Authorization header of each, in order."""
    connections: set[object] = field(default_factory=set)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


@contextlib.contextmanager
def stand_in(routes: Mapping[str, Route], *, drops_kept: bool = False) -> Iterator[StandIn]:
    """What is not in `routes` is answered with 404. With `drops_kept`, a connection closes at its second request."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        answered = False

        def do_GET(self) -> None:
            if drops_kept and self.answered:
                self.close_connection = True
                return
            self.answered = True
            server.requests.append((self.path, self.headers["Authorization"]))
            server.connections.add(self.client_address)
            route = routes.get(self.path, Reply({"error": {"code": 404, "message": "File Not Found"}}, status=404))
            if isinstance(route, Reply):
                self.reply(route)
            else:
                self.close_connection = True
                self.keep_waiting(drip=isinstance(route, Drip))

        def reply(self, reply: Reply) -> None:
            content = reply.content()
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(content) + reply.missing_bytes))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = reply.missing_bytes > 0

        def keep_waiting(self, *, drip: bool) -> None:
            if drip:
                self.send_response(200)
                self.end_headers()
            with contextlib.suppress(OSError):  # the client gave up
                while not over.wait(0.01):
                    if drip:
                        self.wfile.write(b" ")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        server = StandIn(f"http://127.0.0.1:{httpd.server_port}")
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            over.set()
            httpd.shutdown()
            thread.join()
