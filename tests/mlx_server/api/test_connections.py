"""Connections that are slow, too many, or bring what is no HTTP: raw sockets to the running server."""

import contextlib
import json
import socket

import httpx
import psutil
import pytest

from tests.mlx_server.api.conftest import ANNA
from tests.mlx_server.api.raw import connected, exchange, post, read_to_end, replies, request, send_slowly
from tests.running_server import RunningServer, eventually

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_HEALTH = request("GET", "/health")


def test_headers_that_stop_coming_are_refused(guarded: RunningServer) -> None:
    reply = exchange(guarded, b"GET /health HTTP/1.1\r\nHost: loc")
    assert (reply.status, reply.code) == (408, "request_timeout")


def test_headers_that_trickle_are_refused(guarded: RunningServer) -> None:
    with connected(guarded) as connection:
        send_slowly(connection, b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 100, pause_seconds=0.05)
        assert replies(read_to_end(connection))[0].status == 408


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"\r\n" * 50])
def test_a_connection_that_asks_nothing_is_closed(guarded: RunningServer, sent: bytes) -> None:
    with connected(guarded) as connection:
        connection.sendall(sent)
        assert read_to_end(connection) == b""


def test_so_is_one_that_falls_silent_behind_an_answer(guarded: RunningServer) -> None:
    """An empty line, which begins no request, is no sign of life."""
    with connected(guarded) as connection:
        assert is_healthy(connection)
        connection.sendall(b"\r\n")
        assert read_to_end(connection) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 70_000,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
        b"GET /health?" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 300 + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 10_000_000,
    ],
    ids=["unfinished", "finished", "url", "many", "endless"],
)
def test_large_headers_are_refused(server: RunningServer, head: bytes) -> None:
    reply = exchange(server, *(head[at : at + 30_000] for at in range(0, len(head), 30_000)))
    assert (reply.status, reply.code) == (431, "headers_too_large")


def test_headers_of_60_000_bytes_are_read(server: RunningServer) -> None:
    assert exchange(server, request("GET", "/health", "A: " + "b" * 60_000)).status == 200


NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    b"hello\r\n\r\n",
    b"\x00" * 100,
    b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\nHost: localhost\n\n",
    b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\x00c\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\x01c\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nA b: c\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n folded: b\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
]


@pytest.mark.parametrize("sent", NO_HTTP, ids=lambda sent: repr(sent[:60]))
def test_what_is_no_http_is_refused_in_the_envelope(server: RunningServer, sent: bytes) -> None:
    reply = exchange(server, sent)
    assert (reply.status, reply.code) == (400, "invalid_http")
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize(
    "upgrade",
    [b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\nSec-WebSocket-Version: 13",
     b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__"],
)  # fmt: skip
def test_an_upgrade_is_not_granted(server: RunningServer, upgrade: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 404")


CHAT = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "Count to 3"}], "temperature": 0}).encode()
OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUA\r\n"
)


def offering(body: bytes, framing: bytes, offer: bytes = OFFER) -> bytes:
    """A chat as Java's HttpClient sends it."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head + offer + framing + b"\r\n\r\n" + body


WITH_LENGTH = offering(CHAT, b"Content-Length: %d" % len(CHAT))
IN_CHUNKS = offering(b"%x\r\n%s\r\n0\r\n\r\n" % (len(CHAT), CHAT), b"Transfer-Encoding: chunked")


@pytest.mark.parametrize("sent", [WITH_LENGTH, IN_CHUNKS], ids=["length", "chunks"])
@pytest.mark.parametrize("piece", [1, 7, 200, 10_000])
def test_the_body_of_a_request_that_offers_http2_is_read(server: RunningServer, sent: bytes, piece: int) -> None:
    """However it arrives; and the connection serves the next requests."""
    pieces = [sent[at : at + piece] for at in range(0, len(sent), piece)]
    with connected(server) as connection:
        for part in pieces:
            connection.sendall(part)
        connection.sendall(sent + HEALTH + LAST_HEALTH)
        chats = replies(read_to_end(connection))
    assert [reply.status for reply in chats] == [200] * 4
    assert "1, 2, 3" in json.loads(chats[0].body)["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "offer",
    [b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n",
     b"Upgrade: websocket\r\nConnection: UPGRADE\r\nConnection: close\r\n"],
)  # fmt: skip
def test_what_else_the_client_says_of_the_connection_counts(server: RunningServer, offer: bytes) -> None:
    (reply,) = replies(exchange_to_end(server, offering(CHAT, b"Content-Length: %d" % len(CHAT), offer)))
    assert (reply.status, reply.headers["connection"]) == (200, "close")


def test_two_lengths_are_refused_behind_an_offer_too(server: RunningServer) -> None:
    reply = exchange(server, offering(b"", b"Content-Length: 5\r\nContent-Length: 6"))
    assert (reply.status, reply.code) == (400, "invalid_http")


def exchange_to_end(server: RunningServer, sent: bytes) -> bytes:
    with connected(server) as connection:
        connection.sendall(sent)
        return read_to_end(connection)


def test_an_answer_to_a_client_of_http_1_0_has_its_length(server: RunningServer) -> None:
    for path in (b"/health", b"/v1/models", b"/nowhere", b"/docs"):
        (reply,) = replies(exchange_to_end(server, b"GET %s HTTP/1.0\r\n\r\n" % path))
        assert reply.headers["connection"] == "close"


def test_a_stream_says_once_that_the_connection_ends(server: RunningServer) -> None:
    body = json.dumps(json.loads(CHAT) | {"stream": True}).encode()
    answered = exchange_to_end(server, post("/v1/chat/completions", body)).partition(b"\r\n\r\n")[0].lower()
    assert answered.count(b"\r\nconnection:") == answered.count(b"\r\nconnection: close") == 1


def test_garbage_behind_a_request_does_not_cost_its_answer(server: RunningServer) -> None:
    with connected(server) as connection:
        connection.sendall(HEALTH + b"\x00garbage\r\n\r\n" * 100)
        assert [reply.status for reply in replies(read_to_end(connection))] == [200]


def test_what_is_wrong_with_a_second_request_is_not_the_answer_to_the_first(server: RunningServer) -> None:
    assert b"invalid_http" not in exchange_to_end(
        server, offering(CHAT, b"Content-Length: %d" % len(CHAT)) + NO_HTTP[-1]
    )


def test_requests_in_a_row_are_answered_in_their_order(server: RunningServer) -> None:
    with connected(server) as connection:
        connection.sendall(HEALTH * 5 + LAST_HEALTH)
        assert [reply.status for reply in replies(read_to_end(connection))] == [200] * 6


def test_many_requests_at_once_are_no_way_to_fill_the_memory(server: RunningServer) -> None:
    with connected(server) as connection:
        connection.sendall(HEALTH * 5000)
        answered = replies(read_to_end(connection))
    assert {reply.status for reply in answered} <= {200, 400}
    assert 1 <= len(answered) < 5000


def test_headers_behind_a_body_count_for_nothing(guarded: RunningServer) -> None:
    """A proxy in front may not have looked at them."""
    head = request("GET", "/v1/models", "Transfer-Encoding: chunked")
    assert exchange(guarded, head + f"0\r\nx-api-key: {ANNA}\r\n\r\n".encode()).status == 401


def test_headers_of_the_answer_hold_nothing_of_the_request(server: RunningServer) -> None:
    reply = exchange(
        server,
        request("GET", "/%0d%0aX-Evil:%201", "X-Request-Id: a\tb\xff", "Origin: https://evil.example", "Referer: evil"),
    )
    assert reply.status == 404
    assert "x-evil" not in reply.headers
    assert "evil" not in json.dumps(reply.headers)


def is_healthy(connection: socket.socket) -> bool:
    """The connection stays open."""
    connection.sendall(HEALTH)
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(2**16)
    return replies(received)[0].status == 200


def test_connections_beyond_the_limit_are_told_so_and_those_before_work_on(guarded: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(12):
            connection = stack.enter_context(connected(guarded))
            assert is_healthy(connection)
            held.append(connection)
        reply = exchange(guarded, LAST_HEALTH)
        assert (reply.status, reply.code) == (503, "too_many_connections")
        assert int(reply.headers["retry-after"]) >= 1
        assert is_healthy(held[0])
    eventually(lambda: httpx.get(f"{guarded.url}/health").status_code, lambda status: status == 200)


def test_connections_far_beyond_the_limit_are_cut_unanswered(guarded: RunningServer) -> None:
    """They would hold a descriptor each while they are told why."""
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            assert is_healthy(stack.enter_context(connected(guarded)))
        beyond = [stack.enter_context(connected(guarded)) for _ in range(12 + 64 + 24)]
        answers = [read_to_end(connection) for connection in beyond]
    assert answers[0].startswith(b"HTTP/1.1 503")
    assert b"" in answers
    eventually(lambda: httpx.get(f"{guarded.url}/health").status_code, lambda status: status == 200)


def is_held(server: RunningServer, connection: socket.socket) -> bool:
    """Whether the server has its end of the connection."""
    port = connection.getsockname()[1]
    held = psutil.Process(server.process.pid).net_connections("tcp")
    return any(other.raddr and other.raddr.port == port for other in held)


def test_a_client_that_does_not_read_is_dropped(guarded: RunningServer) -> None:
    """It asks for more than the buffers of two sockets hold; without a limit it would keep its place for ever."""
    much = {"n": 32, "max_tokens": 200, "ignore_eos": True, "logprobs": True, "top_logprobs": 20, "stream": True}
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "Hi"}], **much}).encode()
    with contextlib.closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((guarded.host, guarded.port))
        connection.sendall(post("/v1/chat/completions", body, "x-api-key: sk-nameless=="))
        eventually(lambda: is_held(guarded, connection), lambda held: held)
        eventually(lambda: is_held(guarded, connection), lambda held: not held, seconds=20)


def test_a_client_that_left_behind_a_second_request_generates_no_more(server: RunningServer) -> None:
    """Not streamed: nothing is written meanwhile that could fail."""
    endless = {"model": "babbler", "prompt": "x", "n": 64, "max_tokens": 8000, "ignore_eos": True}
    with connected(server) as connection:
        connection.sendall(
            post("/v1/completions", json.dumps(endless).encode()).replace(b"Connection: close", b"A: b") + HEALTH
        )
        eventually(lambda: running_on(server, "babbler"), lambda running: running > 0)
    eventually(lambda: running_on(server, "babbler"), lambda running: running == 0, seconds=5)


def running_on(server: RunningServer, model_id: str) -> int:
    models = httpx.get(f"{server.url}/admin/pool").json()["models"]
    return next(int(model["sequences"]["running"]) for model in models if model["id"] == model_id)


def test_nothing_of_all_this_was_an_error_of_the_servers(guarded: RunningServer, server: RunningServer) -> None:
    """Runs last in this file: what clients send must not end in a traceback."""
    assert "Traceback" not in guarded.log.read_text() + server.log.read_text()
