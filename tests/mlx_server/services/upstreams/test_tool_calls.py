"""Two calls are two calls with valid arguments, however an upstream writes them."""

from typing import Any

import msgspec
import pytest

from mlx_manager.mlx_server.services.upstreams.shapes import BadChunk, CallPiece
from mlx_manager.mlx_server.services.upstreams.tool_calls import CallEvent, ToolCallCollector
from mlx_manager.mlx_server.types import ToolCallDelta, ToolCallStarted

Json = dict[str, Any]
F, G = ("f", '{"x":1}'), ("g", '{"y":2}')


def piece(name: str | None = None, arguments: object = None, **place: object) -> Json:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {**place, "type": "function", "function": function}


def events_of(pieces: list[Json], whole: bool = True) -> list[CallEvent]:
    collector = ToolCallCollector(0)
    read = [msgspec.json.decode(msgspec.json.encode(each), type=CallPiece) for each in pieces]
    return [*(event for each in read for event in collector.add(each)), *collector.finish(whole=whole)]


def calls_of(pieces: list[Json]) -> list[tuple[str, str]]:
    """Name and arguments of each call."""
    calls: dict[int, tuple[str, str]] = {}
    ids = []
    for event in events_of(pieces):
        if isinstance(event, ToolCallStarted):
            calls[event.call] = (event.name, "")
            ids.append(event.id)
        else:
            name, arguments = calls[event.call]
            calls[event.call] = (name, arguments + event.arguments)
    assert all(ids)
    assert len(set(ids)) == len(calls)
    return list(calls.values())


def test_pieces_are_passed_on_as_they_come() -> None:
    pieces = [
        piece("f", "", index=1, id="a"),
        piece(None, '{"x":', index=1),
        piece("g", "{}", index=2, id="b"),
        piece(None, " 1}", index=1),
    ]
    assert events_of(pieces) == [
        ToolCallStarted(0, 0, "a", "f"),
        ToolCallDelta(0, 0, '{"x":'),
        ToolCallStarted(0, 1, "b", "g"),
        ToolCallDelta(0, 1, "{}"),
        ToolCallDelta(0, 0, " 1}"),
    ]


WRITTEN: dict[str, tuple[list[Json], list[tuple[str, str]]]] = {
    "all 0, ids differ": ([piece(*F, index=0, id="a"), piece(*G, index=0, id="b")], [F, G]),
    "all 0, no ids": ([piece(*F, index=0), piece(*G, index=0)], [F, G]),
    "all 0, one function": ([piece(*F, index=0), piece("f", "{}", index=0)], [F, ("f", "{}")]),
    "all 0, told apart by ids in turn": (
        [
            piece("f", '{"x"', index=0, id="a"),
            piece("g", '{"y"', index=0, id="b"),
            piece(None, ":1}", index=0, id="a"),
            piece(None, ":2}", index=0, id="b"),
        ],
        [F, G],
    ),
    "no index": ([piece("f", '{"x"', id="a"), piece(None, ":1}"), piece(*G, id="b")], [F, G]),
    "no index, empty id": ([piece("f", '{"x"', id="a"), piece(None, ":1}", id="")], [F]),
    "neither index nor id": ([piece(*F), piece(*G)], [F, G]),
    "neither, and no arguments": ([piece("f"), piece("g")], [("f", "{}"), ("g", "{}")]),
    "index counts pieces": ([piece("f", '{"x"', index=1, id="a"), piece(None, ":1}", index=2)], [F]),
    "a new id with each piece": (
        [piece("f", index=0, id="a"), piece(None, '{"x"', index=0, id="b"), piece(None, ":1}", index=0, id="c")],
        [F],
    ),
    "one id for all": ([piece(*F, index=0, id="a"), piece(*G, index=1, id="a")], [F, G]),
    "name behind the id": ([piece(index=0, id="a"), piece("f", index=0), piece(None, F[1], index=0)], [F]),
    "name behind the id, twice, all 0": (
        [
            *(piece(index=0, id="a"), piece("f", index=0), piece(None, F[1], index=0)),
            *(piece(index=0, id="b"), piece("g", index=0), piece(None, G[1], index=0)),
        ],
        [F, G],
    ),
    "name behind arguments": ([piece(None, '{"x"', index=0, id="a"), piece("f", ":1}", index=0)], [F]),
    "name in pieces": (
        [piece("get_", "", index=0, id="a"), piece("weather", F[1], index=0)],
        [("get_weather", F[1])],
    ),
    "name with each piece": ([piece("f", '{"x"', index=0, id="a"), piece("f", ":1}", index=0, id="a")], [F]),
    "the call once more": ([piece(*F, index=0, id="a"), piece(*F, index=0, id="a")], [F]),
    "arguments once more": ([piece(*F, index=0, id="a"), piece(None, F[1], index=0)], [F]),
    "objects": ([piece("f", {"x": 1}, index=0, id="a"), piece("g", {"y": 2}, index=0, id="b")], [F, G]),
    "null in text": ([piece("f", "null", index=0, id="a")], [("f", "{}")]),
    "null as a piece": (
        [piece("f", '{"x":', index=0), piece(None, "null", index=0), piece(None, "}", index=0)],
        [("f", '{"x":null}')],
    ),
    "other types": ([piece(*F, index="0", id=7)], [F]),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_calls_are_told_apart_and_put_together(written: str) -> None:
    pieces, calls = WRITTEN[written]
    assert calls_of(pieces) == calls


def test_id_of_the_upstream_is_kept_and_a_missing_one_made() -> None:
    first, _, second, _ = events_of([piece(*F, index=0, id="a"), piece(*G, index=1)])
    assert isinstance(first, ToolCallStarted)
    assert isinstance(second, ToolCallStarted)
    assert first.id == "a"
    assert second.id.startswith("call_")


def test_arguments_of_an_object_keep_their_digits() -> None:
    collector = ToolCallCollector(0)
    raw = b'{"index": 0, "function": {"name": "f", "arguments": {"x": 123456789012345678901234567890}}}'
    _, delta = collector.add(msgspec.json.decode(raw, type=CallPiece))
    assert delta == ToolCallDelta(0, 0, '{"x": 123456789012345678901234567890}')


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([piece(None, "{}", index=0, id="a")], r"without a name \(id 'a'\)"),
        ([piece("f", '{"x":1}{"y":2}', index=0)], "'f' that are not one JSON object"),
        ([piece("f", '{"x":', index=0)], "'f' that are not one JSON object"),
        ([piece("f", "[1]", index=0)], "'f' that are not one JSON object"),
        ([piece("f", '{"x":', index=0), piece("g", "1}", index=0)], "renamed tool call 'f' to 'g'"),
        ([piece("f", [1], index=0)], "neither text nor an object"),
    ],
)
def test_call_that_contradicts_itself_is_told(pieces: list[Json], words: str) -> None:
    with pytest.raises(BadChunk, match=words):
        events_of(pieces)


def test_call_that_the_limit_cut_is_passed_on_as_it_is() -> None:
    pieces = [piece("f", '{"x":', index=0, id="a"), piece(index=1, id="b")]
    assert events_of(pieces, whole=False) == [ToolCallStarted(0, 0, "a", "f"), ToolCallDelta(0, 0, '{"x":')]
