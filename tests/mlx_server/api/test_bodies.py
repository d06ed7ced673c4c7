"""Bodies that are too long, too deep, too slow, or not what they say, on raw sockets."""

import asyncio
import json
import time
import zlib

import httpx
import pytest

from tests.mlx_server.api.conftest import ANNA
from tests.mlx_server.api.raw import Reply, connected, exchange, post, read_to_end, replies, request, send_slowly
from tests.running_server import HANG_SECONDS, RunningServer

KEY = f"x-api-key: {ANNA}"
PATH = "/v1/completions"
MB = 2**20
UNREAD_MODEL = b'"model": "nobody"'


def padded(size: int) -> bytes:
    """A good body of so many bytes, for a model that is not there."""
    empty = b"{%s, " % UNREAD_MODEL + b'"prompt": ""}'
    return empty[:-2] + b"x" * (size - len(empty)) + b'"}'


def chunked(*chunks: bytes) -> bytes:
    encoded = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return request("POST", PATH, KEY, "Content-Type: application/json", "Transfer-Encoding: chunked", body=encoded)


def posted(server: RunningServer, body: bytes, *headers: str) -> Reply:
    return exchange(server, post(PATH, body, KEY, *headers))


def test_a_body_of_the_limit_is_read_and_one_byte_more_is_not(guarded: RunningServer) -> None:
    assert posted(guarded, padded(MB)).status == 404
    refused = posted(guarded, padded(MB + 1))
    assert (refused.status, refused.code) == (413, "request_too_large")
    assert refused.headers["connection"] == "close"
    assert b"exceeds the limit of 1 MB" in refused.body


def test_a_body_that_says_that_it_is_too_long_is_refused_before_it_comes(guarded: RunningServer) -> None:
    head = request("POST", PATH, KEY, "Content-Type: application/json", f"Content-Length: {2**40}")
    assert exchange(guarded, head).status == 413
    waiting = request(
        "POST", PATH, KEY, "Content-Type: application/json", f"Content-Length: {2**40}", "Expect: 100-continue"
    )
    assert exchange(guarded, waiting).status == 413


def test_a_body_in_chunks_is_cut_where_it_gets_too_long(guarded: RunningServer) -> None:
    fits = padded(MB)
    assert exchange(guarded, chunked(fits[:1000], fits[1000:], b"")).status == 404
    endless = [b"x" * 65_536] * 64
    assert exchange(guarded, chunked(*endless)).status == 413


def test_a_client_that_is_still_sending_is_not_reset_before_it_has_read_why(guarded: RunningServer) -> None:
    """A reset may take the answer away from it."""
    with connected(guarded) as connection:
        connection.sendall(request("POST", PATH, KEY, "Content-Type: application/json", f"Content-Length: {2**40}"))
        (reply,) = replies(read_to_end(connection))  # the server has ended its side alone
        for _ in range(4):
            connection.sendall(b"x" * 65_536)
            time.sleep(0.1)
    assert reply.status == 413


def test_a_body_that_stops_coming_is_refused(guarded: RunningServer) -> None:
    head = request("POST", PATH, KEY, "Content-Type: application/json", "Content-Length: 1000")
    reply = exchange(guarded, head, b'{"model": ')
    assert (reply.status, reply.code) == (408, "request_timeout")


def test_a_body_that_trickles_is_refused(guarded: RunningServer) -> None:
    """Each byte is progress, and the whole would take minutes."""
    with connected(guarded) as connection:
        connection.sendall(request("POST", PATH, KEY, "Content-Type: application/json", "Content-Length: 1000"))
        assert send_slowly(connection, b" " * 1000, pause_seconds=0.1) < 1000
        assert replies(read_to_end(connection))[0].status == 408


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b'{"model": "nobody", "prompt": "a\xff"}', b"UTF-8"),
        (b'{"model": "nobody", "prompt": "a\x00b"}', b"control character"),
        ('{"model": "nobody", "prompt": "a"}'.encode("utf-16"), b"UTF-8"),
        ('{"model": "nobody", "prompt": "a"}'.encode("utf-16-le"), b"JSON"),
        (b'{"model": "nobody", "model": "demo", "prompt": "a"}', b"model: duplicate key 'model'"),
        (b'{"model": "nobody", "prompt": "a", "metadata": {"\\ud800": 1, "\\ud800": 2}}', b"duplicate key '"),
        (b'{"model": "nobody", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", b"JSON"),
        (b'{"model": "nobody", "prompt": "a", "temperature": 1e999}', b"temperature"),
        (b'{"model": "nobody", "prompt": "a", "temperature": NaN}', b"temperature"),
        (b'{"model": "nobody", "prompt": "a", "temperature": -Infinity}', b"temperature"),
        (b"[" * 257 + b"]" * 257, b"nested"),
        (b'{"a":' * 257 + b"1" + b"}" * 257, b"nested"),
        (b'{"a":[' * 128 + b"1" + b"]}" * 128 + b" x", b"JSON"),
        (b"[" * 500_000, b"nested"),
        (b"[" * 700_000, b"lists"),
        (b"[" + b"1,," * 300_000 + b"1]", b"JSON"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_what_is_no_reasonable_json_is_refused(guarded: RunningServer, body: bytes, part: bytes) -> None:
    reply = posted(guarded, body)
    assert (reply.status, reply.code) == (422, "validation_error")
    assert part in reply.body


def test_a_body_nested_as_deep_as_may_be_is_read(guarded: RunningServer) -> None:
    deep = b'{"a":' * 255 + b"1" + b"}" * 255
    assert posted(guarded, b'{"model": "nobody", "prompt": "a", "metadata": %s}' % deep).status == 404


def test_values_without_end_are_refused_before_they_are_made(server: RunningServer) -> None:
    for body, part in ((b"[" + b"[]," * 600_000 + b"1]", b"lists"), (b"[" + b"1," * 1_200_001 + b"1]", b"values")):
        reply = exchange(server, post(PATH, body))
        assert (reply.status, reply.code) == (422, "validation_error")
        assert part in reply.body


def test_brackets_and_quotes_in_strings_count_for_nothing(guarded: RunningServer) -> None:
    text = "[{" * 300_000 + '"' * 20_000 + "\\" * 7 + ",]"
    body = json.dumps({"model": "nobody", "prompt": text[:500_000], "metadata": {"a": '"\\"[' * 20}}).encode()
    assert posted(guarded, body).status == 404


def test_a_compressed_body_is_refused(guarded: RunningServer) -> None:
    reply = posted(guarded, zlib.compress(b"x" * 10 * MB), "Content-Encoding: gzip")
    assert (reply.status, reply.code) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "\xff\xfe", ";", "json"]
)
def test_a_body_that_is_not_called_json_is_refused(guarded: RunningServer, content_type: str) -> None:
    body = b'{"model": "nobody", "prompt": "a"}'
    head = request("POST", PATH, KEY, f"Content-Type: {content_type}", f"Content-Length: {len(body)}", body=body)
    reply = exchange(guarded, head)
    assert (reply.status, reply.code) == (422, "validation_error")


@pytest.mark.parametrize(
    "content_type", [None, "application/x-www-form-urlencoded", "Application/JSON", "application/a+json"]
)
def test_json_is_read_where_the_client_does_not_call_it_otherwise(
    server: RunningServer, content_type: str | None
) -> None:
    """As `curl -d` sends it, which names the type of forms."""
    headers = {"Content-Type": content_type} if content_type is not None else {}
    body = b'{"model": "demo", "messages": [{"role": "user", "content": "Count to 3"}]}'
    assert httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers).status_code == 200
    form = httpx.post(f"{server.url}/v1/completions", content=b"model=demo&prompt=Hi", headers=headers)
    assert (form.status_code, form.json()["error"]["code"]) == (422, "validation_error")


def test_json_of_a_foreign_pages_form_is_refused(server: RunningServer) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "null"}
    response = httpx.post(f"{server.url}/v1/completions", content=b'{"model": "demo", "prompt": "Hi"}', headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_not_allowed")


def test_a_large_body_does_not_hold_up_the_others(server: RunningServer) -> None:
    """The event loop answers others while it reads, checks and parses the largest body."""

    async def waits_beside_a_large_body() -> list[float]:
        url = f"{server.url}{PATH}"
        async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
            waits: list[float] = []
            posting = asyncio.create_task(
                client.post(url, content=padded(32 * MB), headers={"Content-Type": "application/json"})
            )
            while not posting.done():
                started = time.perf_counter()
                assert (await client.get(f"{server.url}/health")).status_code == 200
                waits.append(time.perf_counter() - started)
            assert (await posting).json()["error"]["param"] == "prompt"  # read, and found too long
            return waits

    waits = asyncio.run(waits_beside_a_large_body())
    assert max(waits) < 0.8 * sum(waits)  # a loop that stands still gives one wait as long as all
