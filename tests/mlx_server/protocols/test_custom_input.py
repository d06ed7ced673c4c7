"""The text for a custom tool, out of a call's JSON, however that is cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_manager.mlx_server.protocols.custom_input import CustomInput, custom_input

TEXTS = st.text(st.sampled_from(["a", '"', "\\", "\n", "é", "😀", "u", "d", "8", "0", "\t", "/", "\x01"]), max_size=12)


@given(TEXTS, st.booleans(), st.lists(st.integers(1, 5), min_size=1))
def test_the_text_is_the_same_however_the_arguments_are_cut(text: str, ascii_only: bool, cuts: list[int]) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    reader, read, place = CustomInput(), "", 0
    while place < len(arguments):
        size = cuts[place % len(cuts)]
        read += reader.feed(arguments[place : place + size])
        place += size
    assert (read + reader.finish(), reader.is_whole) == (text, True)


def test_text_comes_before_the_call_has_ended() -> None:
    assert CustomInput().feed('{"input": "a\\nb\\') == "a\nb"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"patch": "x"}', "x"),
        ('{"a": 1, "input": "z"}', "z"),
        ('"x"', "x"),
        ("*** Begin Patch", "*** Begin Patch"),
        ('{"a": 1}', '{"a": 1}'),
        ('{"input": "cut', "cut"),
    ],
)
def test_arguments_of_another_form_are_read_as_far_as_they_can_be(arguments: str, text: str) -> None:
    assert custom_input(arguments) == text
