"""Fits the turns of a chat to what a model's chat template accepts. Pure; knows no protocol and renders nothing.

Turns that the template accepts stay unchanged. Other text is joined or moved to a neighbouring turn; no text is lost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mlx_manager.mlx_server.models.adapters import TemplateTraits
from mlx_manager.mlx_server.types import ChatTurn

SYSTEM_BLOCK = "<system>\n{text}\n</system>"
"""Marks a system message inside a user message."""


def fit_turns(turns: Iterable[ChatTurn], traits: TemplateTraits, *, hoist: bool = False) -> tuple[ChatTurn, ...]:
    """With `hoist`, system messages that the template does not accept in place move to the start.

    This changes the start of the prompt, so earlier turns miss the prefix cache.
    """
    leading, later = _split(list(turns))
    if not traits.late_systems:
        if hoist:
            leading += [turn for turn in later if turn.role == "system"]
            later = [turn for turn in later if turn.role != "system"]
        later = _fold_systems(later)
    return tuple(_join_runs(_begin(leading, later, traits), traits))


def leading_systems(turns: Sequence[ChatTurn]) -> int:
    """How many system messages the chat begins with."""
    return next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))


def _split(turns: list[ChatTurn]) -> tuple[list[ChatTurn], list[ChatTurn]]:
    """The leading system messages, and all later turns."""
    first = leading_systems(turns)
    return turns[:first], turns[first:]


def _begin(leading: list[ChatTurn], later: list[ChatTurn], traits: TemplateTraits) -> list[ChatTurn]:
    """The chat with its leading system messages unchanged, joined to one, or moved into the first user message."""
    has_user = any(turn.role == "user" for turn in later)
    accepted = traits.system and (has_user or traits.only_system)
    if not leading or (accepted and (traits.several_systems or len(leading) == 1)):
        return [*leading, *later]
    text = _joined(turn.content for turn in leading)
    if accepted:
        return [ChatTurn("system", text), *later]
    if later and later[0].role == "user":
        return [_with_text(later[0], before=text), *later[1:]]
    return [ChatTurn("user", text), *later]


def _fold_systems(turns: list[ChatTurn]) -> list[ChatTurn]:
    """Puts each system message as a block into the next user message, else the previous one, else a new one.

    A block never comes between a tool call and its result.
    """
    folded: list[ChatTurn] = []
    blocks: list[str] = []
    for turn in turns:
        if turn.role == "system":
            blocks.append(SYSTEM_BLOCK.format(text=turn.content))
            continue
        if blocks and turn.role == "user":
            turn = _with_text(turn, before=_joined(blocks))
            blocks = []
        elif turn.role == "assistant":
            _append(folded, blocks)
            blocks = []
        folded.append(turn)
    _append(folded, blocks)
    return folded


def _append(turns: list[ChatTurn], blocks: list[str]) -> None:
    if not blocks:
        return
    if turns and turns[-1].role == "user":
        turns[-1] = _with_text(turns[-1], after=_joined(blocks))
    else:
        turns.append(ChatTurn("user", _joined(blocks)))


def _join_runs(turns: list[ChatTurn], traits: TemplateTraits) -> list[ChatTurn]:
    """Joins each turn to the one before it, if the template does not accept it there."""
    joined: list[ChatTurn] = []
    for turn in turns:
        before = joined[-1] if joined else None
        if turn.role == "assistant" and not traits.assistant_first and (before is None or before.role == "system"):
            joined.append(ChatTurn("user", ""))
        elif before is not None and _joins(before, turn, traits):
            joined[-1] = _join(before, turn)
            continue
        joined.append(turn)
    return joined


def _joins(before: ChatTurn, turn: ChatTurn, traits: TemplateTraits) -> bool:
    match before.role, turn.role:
        case "user", "user":
            return not traits.user_runs
        case "assistant", "assistant":
            return not traits.assistant_runs
        case "tool", "user":
            return not traits.user_after_result
        case _:
            return False


def _join(before: ChatTurn, turn: ChatTurn) -> ChatTurn:
    reasoning = _joined((before.reasoning, turn.reasoning))
    content = _joined((before.content, turn.content))
    return replace(
        before,
        content=content if content or not turn.tool_calls else None,
        tool_calls=(*before.tool_calls, *turn.tool_calls),
        reasoning=reasoning if reasoning else None,
    )


def _with_text(turn: ChatTurn, *, before: str = "", after: str = "") -> ChatTurn:
    return replace(turn, content=_joined((before, turn.content, after)))


def _joined(texts: Iterable[str | None]) -> str:
    return "\n\n".join(text for text in texts if text)
