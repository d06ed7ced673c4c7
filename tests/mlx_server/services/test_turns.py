"""Chats as templates accept them: what they accept stays, and no text is lost."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_manager.mlx_server.models.adapters import TemplateTraits
from mlx_manager.mlx_server.services.tool_prompt import with_tools_as_text
from mlx_manager.mlx_server.services.turns import fit_turns
from mlx_manager.mlx_server.types import ChatTurn, ToolCall

EVERYTHING = TemplateTraits()
FIRST_ONLY = TemplateTraits(several_systems=False, late_systems=False)
NO_SYSTEM = replace(FIRST_ONLY, system=False, only_system=False)
ALTERNATING = replace(NO_SYSTEM, user_runs=False, assistant_runs=False, assistant_first=False)

S, S2 = ChatTurn("system", "Rule."), ChatTurn("system", "Rule 2.")
U, U2 = ChatTurn("user", "Hi"), ChatTurn("user", "And?")
A, A2 = ChatTurn("assistant", "Hello"), ChatTurn("assistant", "Well.")
CALL = ChatTurn("assistant", None, tool_calls=(ToolCall("1", "get", '{"a": 1}'),))
RESULT = ChatTurn("tool", "7", tool_call_id="1")
BLOCK = "<system>\nRule 2.\n</system>"


def said(*turns: ChatTurn) -> list[tuple[str, str | None]]:
    return [(turn.role, turn.content) for turn in turns]


@pytest.mark.parametrize(
    ("traits", "turns", "fitted"),
    [
        (EVERYTHING, (S, S2, U, S, U2, A, A2), said(S, S2, U, S, U2, A, A2)),
        (FIRST_ONLY, (S, U), said(S, U)),
        (FIRST_ONLY, (S, S2, U), [("system", "Rule.\n\nRule 2."), *said(U)]),
        (FIRST_ONLY, (S, U, A, S2, U2), [*said(S, U, A), ("user", f"{BLOCK}\n\nAnd?")]),
        (FIRST_ONLY, (S, U, S2, A), [*said(S), ("user", f"Hi\n\n{BLOCK}"), *said(A)]),
        (FIRST_ONLY, (U, A, S2), [*said(U, A), ("user", BLOCK)]),
        (FIRST_ONLY, (U, CALL, S2, RESULT, A), [*said(U, CALL, RESULT), ("user", BLOCK), *said(A)]),
        (NO_SYSTEM, (S, U), [("user", "Rule.\n\nHi")]),
        (NO_SYSTEM, (S, S2, U), [("user", "Rule.\n\nRule 2.\n\nHi")]),
        (NO_SYSTEM, (S,), [("user", "Rule.")]),
        (NO_SYSTEM, (S, A, U), [("user", "Rule."), *said(A, U)]),
        (replace(EVERYTHING, only_system=False), (S,), [("user", "Rule.")]),
        (replace(EVERYTHING, only_system=False), (S, U), said(S, U)),
        (ALTERNATING, (U, U2, A, A2, U), [("user", "Hi\n\nAnd?"), ("assistant", "Hello\n\nWell."), *said(U)]),
        (ALTERNATING, (A, U), [("user", ""), *said(A, U)]),
        (ALTERNATING, (S, A, U), [("user", "Rule."), *said(A, U)]),
        (ALTERNATING, (A, CALL), [("user", ""), *said(A)]),
        (replace(EVERYTHING, user_after_result=False), (U, CALL, RESULT, U2), [*said(U, CALL), ("tool", "7\n\nAnd?")]),
    ],
)
def test_a_chat_is_as_the_template_accepts_it(
    traits: TemplateTraits, turns: tuple[ChatTurn, ...], fitted: list[tuple[str, str | None]]
) -> None:
    assert said(*fit_turns(turns, traits)) == fitted


def test_joined_turns_keep_their_calls_and_thoughts() -> None:
    thought = replace(A, reasoning="Hm.")
    (_, joined) = fit_turns((U, thought, CALL), ALTERNATING)
    assert (joined.content, joined.reasoning, joined.tool_calls) == ("Hello", "Hm.", CALL.tool_calls)
    (_, joined) = fit_turns((U, CALL, CALL), ALTERNATING)
    assert (joined.content, len(joined.tool_calls)) == (None, 2)


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=9), st.sampled_from(
    [EVERYTHING, FIRST_ONLY, NO_SYSTEM, ALTERNATING]
))  # fmt: skip
def test_no_text_is_lost_or_moved_before_another(roles: list[str], traits: TemplateTraits) -> None:
    turns = [ChatTurn(role, f"text {number}.") for number, role in enumerate(roles)]
    fitted = fit_turns(turns, traits)
    text = " ".join(turn.content or "" for turn in fitted)
    places = [text.index(turn.content or "") for turn in turns]
    assert places == sorted(places)
    if traits is ALTERNATING:
        assert all(turn.role == ("user", "assistant")[number % 2] for number, turn in enumerate(fitted))


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=2, max_size=9))
def test_a_chat_that_goes_on_keeps_its_beginning(roles: list[str]) -> None:
    """So that the prefix cache knows it. The last user turn may still get a system message that follows it."""
    turns = [ChatTurn(role, f"text {number}.") for number, role in enumerate(roles)]
    before = fit_turns([*turns, U2, A], FIRST_ONLY)
    after = fit_turns([*turns, U2, A, S2, U2], FIRST_ONLY)
    assert after[: len(before)] == before


TOOL: dict[str, object] = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}


def test_tools_calls_and_results_are_text_in_the_layout_of_hermes() -> None:
    said_call = replace(CALL, content="I look.", tool_calls=(*CALL.tool_calls, ToolCall("2", 'q"', "{broken")))
    system, user, called, results = with_tools_as_text([S, U, said_call, RESULT, RESULT], [TOOL])
    assert (system.role, (system.content or "").startswith("Rule.\n\n# Tools")) == ("system", True)
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in (system.content or "")
    assert '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' in (
        system.content or ""
    )
    assert user == U
    assert called == ChatTurn(
        "assistant",
        'I look.\n<tool_call>\n{"name": "get", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "q\\"", "arguments": "{broken"}\n</tool_call>',
    )
    result = "<tool_response>\n7\n</tool_response>"
    assert results == ChatTurn("user", f"{result}\n{result}")


def test_a_chat_about_tools_without_tools_shows_none() -> None:
    roles = [turn.role for turn in with_tools_as_text([U, CALL, RESULT, A], [])]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert with_tools_as_text([U], [TOOL])[0].role == "system"
