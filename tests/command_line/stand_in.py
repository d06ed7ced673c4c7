"""A server that answers a fixed JSON or stream on each path, for replies that a real one seldom gives."""

import contextlib
import json
from collections.abc import Iterator, Mapping

from tests.local_http import QuietHandler, local_server


@contextlib.contextmanager
def stand_in(replies: Mapping[str, object]) -> Iterator[str]:
    """Its address; a text is an SSE stream, and any other path a 404 in OpenAI's envelope."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            reply = replies.get(self.path, {"error": {"message": "there is nothing"}})
            body = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            self.send_response(200 if self.path in replies else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

    with local_server(Handler) as url:
        yield url
