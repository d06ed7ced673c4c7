import pytest

from mlx_manager.mlx_server.services.upstreams.event_stream import EventStreamDecoder, ServerSentEvent
from mlx_manager.mlx_server.services.upstreams.shapes import BadChunk

ONE, TWO, DONE = b'{"n": 1}', b'{"n": 2}', b"[DONE]"


def decode(stream: bytes, size: int = 1) -> list[ServerSentEvent]:
    """Fed in pieces of `size` bytes."""
    decoder = EventStreamDecoder()
    pieces = (stream[start : start + size] for start in range(0, len(stream), size))
    return [*(event for piece in pieces for event in decoder.feed(piece)), *decoder.flush()]


@pytest.mark.parametrize(
    "stream",
    [
        b"data: %b\n\ndata: %b\n\ndata: %b\n\n",
        b"data: %b\r\n\r\ndata: %b\r\n\r\ndata: %b\r\n\r\n",
        b"data: %b\r\rdata: %b\r\rdata: %b\r\r",
        b"data: %b\ndata: %b\ndata: %b\n",
        b"data: %b\n\ndata: %b\n\ndata: %b",
        b"data:%b\n\ndata:  %b \n\ndata:%b\n\n",
        b"\xef\xbb\xbfdata: %b\n\ndata: %b\n\ndata: %b\n\n",
        b": hello\n\ndata: %b\n: between\n\n:\ndata: %b\n\n: OPENROUTER PROCESSING\n\ndata: %b\n\n: bye\n\n",
        b"data:\n\ndata: %b\n\ndata: \ndata\n\ndata: %b\n\n\n\ndata: %b\n\n",
        b"event: message\nid: 1\nretry: 9\ndata: %b\n\nevent: x\ndata: %b\n\ndata: %b\n\n",
    ],
)
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_events_are_the_same_however_they_are_written_and_cut(stream: bytes, size: int) -> None:
    assert [event.payload for event in decode(stream % (ONE, TWO, DONE), size)] == [ONE, TWO, DONE]


def test_event_of_several_lines_is_put_together() -> None:
    (event,) = decode(b'data: {"text":\ndata:  "a"\n: comment\ndata: }\n\n')
    assert event.payload == b'{"text":\n "a"\n}'


def test_line_separators_that_json_may_hold_end_no_line() -> None:
    payload = '{"text": "a\u2028b\u2029c\x85"}'.encode()
    assert [event.payload for event in decode(b"data: " + payload + b"\n\n")] == [payload]


def test_event_is_there_before_the_next_begins() -> None:
    decoder = EventStreamDecoder()
    assert [event.payload for event in decoder.feed(b"data: " + ONE + b"\n")] == [ONE]
    assert [event.is_done for event in decoder.feed(b"\ndata: [DONE]\n")] == [True]


@pytest.mark.parametrize(
    "stream",
    [
        b"event: error\ndata: out of memory\n\n",
        b"event:error\ndata: out of memory",
        b"error: out of memory\n\n",
    ],
)
def test_event_that_is_named_an_error_is_one(stream: bytes) -> None:
    failure = ServerSentEvent(b"out of memory", is_error=True)
    assert decode(stream) == [failure]
    assert decode(stream + b"\n\ndata: " + ONE) == [failure, ServerSentEvent(ONE)]


def test_line_of_json_alone_is_an_event() -> None:
    assert decode(b"data: " + ONE + b"\n\n" + TWO + b"\n") == [ServerSentEvent(ONE), ServerSentEvent(TWO)]


@pytest.mark.parametrize("broken", [b'data: {"n"', b'data: {"n": 2', b'{"n": 2', b"dat", b"data: [DON"])
def test_event_that_breaks_off_is_left_out(broken: bytes) -> None:
    assert [event.payload for event in decode(b"data: " + ONE + b"\n\n" + broken)] == [ONE]


@pytest.mark.parametrize("endless", [b"data: " + b"x" * 2**25, (b"data: " + b"x" * 2**20 + b"\n") * 17])
def test_event_without_an_end_is_refused(endless: bytes) -> None:
    with pytest.raises(BadChunk, match="an event of more than"):
        decode(endless, size=2**21)
