"""The bounds of a JSON text agree with what a parser finds in it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_manager.mlx_server.api.edge.json_shape import MAX_CONTAINERS, MAX_KEYS, MAX_STRINGS, MAX_VALUES, fault_of_json

TEXT = st.text(alphabet='[]{},:"\\\n\u00e9a', max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXT, children, max_size=3),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(depth_of, children), default=0)


@given(value=VALUES, ensure_ascii=st.booleans())
def test_the_depth_is_that_of_the_parsed_value(value: Any, ensure_ascii: bool) -> None:
    text, depth = json.dumps(value, ensure_ascii=ensure_ascii).encode(), depth_of(value)
    assert fault_of_json(text, depth) is None
    assert depth == 0 or "nested" in (fault_of_json(text, depth - 1) or "")


@given(text=st.binary(max_size=200))
def test_any_bytes_are_judged(text: bytes) -> None:
    fault_of_json(text, 4)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"[" + b"1," * (MAX_VALUES + 1) + b"1]", "values"),
        (b"[" + b"[]," * MAX_CONTAINERS + b"1]", "lists and objects"),
        (b"{" + b'"a":1,' * MAX_KEYS + b'"a":1}', "keys"),
        (b"[" + b'"",' * (MAX_STRINGS + 1) + b"1]", "strings"),
    ],
)
def test_there_may_be_so_many_and_no_more(text: bytes, named: str) -> None:
    assert named in (fault_of_json(text, 4) or "")
    first_comma = text.index(b",")
    assert fault_of_json(text[:1] + text[first_comma + 1 :], 4) is None
