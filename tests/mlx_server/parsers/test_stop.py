import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_manager.mlx_server.parsers.stop import StopStringParser

LETTERS = "ab é😀"  # few, so that stop strings are met, overlap and nearly match
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=4).map(tuple)
PIECES = st.lists(st.text(LETTERS, max_size=6), max_size=12)


def sent(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, str | None]:
    """All that may be sent of `pieces`, and the stop string that was matched."""
    parser = StopStringParser(stops)
    text = "".join([*map(parser.feed, pieces)]) + parser.flush()
    return text, parser.matched


def first_complete(stops: tuple[str, ...], text: str) -> tuple[str, str | None]:
    """What is sent of `text` by definition: all before the first complete stop string, the longest of equals."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(STOPS, PIECES)
def test_what_is_sent_does_not_depend_on_how_the_text_is_cut(stops: tuple[str, ...], pieces: list[str]) -> None:
    assert sent(stops, pieces) == first_complete(stops, "".join(pieces))


@given(STOPS, PIECES)
def test_no_text_is_held_back_but_what_a_stop_string_begins_with(stops: tuple[str, ...], pieces: list[str]) -> None:
    parser = StopStringParser(stops)
    text, shown = "".join(pieces), "".join([*map(parser.feed, pieces)])
    assert parser.matched or any(stop.startswith(text[len(shown) :]) for stop in (*stops, ""))


@pytest.mark.parametrize(
    "pieces", [["one END two"], ["one E", "ND two"], ["one ", "E", "N", "D", " two"], [*"one END two"], ["one EN", "D"]]
)
def test_a_stop_string_split_across_feeds_never_leaks(pieces: list[str]) -> None:
    assert sent(("END",), pieces) == ("one ", "END")


def test_nothing_is_sent_after_a_match() -> None:
    parser = StopStringParser(("END",))
    assert parser.feed("a END b") == "a "
    assert parser.feed("c END d") == ""
    assert parser.flush() == ""


def test_text_that_only_looked_like_a_stop_string_is_sent_as_soon_as_that_is_known() -> None:
    parser = StopStringParser(("END",))
    assert parser.feed("the E") == "the "
    assert parser.feed("N") == ""
    assert parser.feed("gine") == "ENgine"


def test_held_back_text_is_sent_at_the_end_once() -> None:
    parser = StopStringParser(("END",))
    assert parser.feed("the EN") == "the "
    assert parser.flush() == "EN"
    assert parser.flush() == ""
    assert parser.matched is None


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (("b", "a"), "xay b", ("x", "a")),
        (("a", "b"), "xay b", ("x", "a")),
        (("abcd", "bc"), "xabcd", ("xa", "bc")),  # "bc" is complete while "abcd" is not
        (("abcd", "bc"), "xab", ("xab", None)),
        (("bc", "abc"), "xabc", ("x", "abc")),  # complete together: less is sent
        (("\n\n", "\n"), "line\n\nline", ("line", "\n")),
    ],
)
def test_of_several_stop_strings_the_earliest_complete_one_wins(
    stops: tuple[str, ...], text: str, expected: tuple[str, str]
) -> None:
    assert sent(stops, [text]) == expected
    assert sent(stops, [*text]) == expected


@pytest.mark.parametrize("stop", ["終わり", "😀😀", "é", "👩‍👩‍👧"])
def test_a_stop_string_in_any_script_is_found(stop: str) -> None:
    assert sent((stop,), [*f"前 {stop} 後"]) == ("前 ", stop)


def test_a_repeated_beginning_does_not_hide_the_stop_string() -> None:
    assert sent(("aab",), [*"aaaab"]) == ("aa", "aab")


def test_without_stop_strings_all_text_passes_at_once() -> None:
    parser = StopStringParser(())
    assert [parser.feed(piece) for piece in ("one", "", " two")] == ["one", "", " two"]
    assert parser.flush() == ""
