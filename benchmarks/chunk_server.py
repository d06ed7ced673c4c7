"""Sends prepared chunks as fast as it can, to measure the load generator's ceiling.

The benchmark starts it as `python -m benchmarks.chunk_server`. It prints its port, and exits at the end of its input.
"""

import asyncio
import json
import re
import sys

import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())


async def _serve() -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Writes each chunk separately, and serves the streams in turn."""
    token, end = _chunk(" abc", None), _chunk("", "length")
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"Content-Length: (\d+)", head)
            assert found is not None
            tokens = json.loads(await reader.readexactly(int(found[1])))["max_tokens"]
            writer.write(HEAD)
            for _ in range(tokens):
                writer.write(token)
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(end + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _chunk(text: str, finish_reason: str | None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    head = {"id": f"cmpl-{0:032x}", "object": "text_completion", "created": 1_800_000_000, "model": "model"}
    return _framed(b"data: " + json.dumps({**head, "choices": [choice]}, separators=(",", ":")).encode() + b"\n\n")


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


if __name__ == "__main__":
    main()
