"""Removes turns that clients change on every request and that mean nothing to a model: they defeat the prefix cache.

Anthropic's agent sends both kinds. Proxies pass them on to every protocol.
"""

import re
from dataclasses import replace

from mlx_manager.mlx_server.types import ChatRequest, ChatTurn

_BILLING_LINE = re.compile(
    r"\s*x-anthropic-billing-header:(?:(?:[ \t]*[\w.-]+=[^;\n]*;)+(?:[ \t]*[\w.-]+=\S*)?|[^\n]*)\s*"
)
_TOKENS_LEFT = re.compile(r"\s*<total_tokens>\s*\d+ tokens left\s*</total_tokens>\s*")


def cleaned(request: ChatRequest) -> ChatRequest:
    turns = _without_token_counters(_without_billing_line(request.turns))
    return request if turns is request.turns or not turns else replace(request, turns=turns)


def _without_billing_line(turns: tuple[ChatTurn, ...]) -> tuple[ChatTurn, ...]:
    """Removes the line from the leading system turn, and the turn if nothing else is in it."""
    first = turns[0]
    found = _BILLING_LINE.match(first.content or "") if first.role == "system" else None
    if found is None:
        return turns
    rest = (first.content or "")[found.end() :]
    return (replace(first, content=rest), *turns[1:]) if rest else turns[1:]


def _without_token_counters(turns: tuple[ChatTurn, ...]) -> tuple[ChatTurn, ...]:
    """Removes counters at the end, and before an assistant turn, where they were the end of an earlier request."""
    followed = zip(turns, (*turns[1:], None), strict=True)
    kept = tuple(turn for turn, after in followed if not _is_token_counter(turn, after))
    return kept if len(kept) < len(turns) else turns


def _is_token_counter(turn: ChatTurn, after: ChatTurn | None) -> bool:
    if turn.role != "system" or (after is not None and after.role != "assistant"):
        return False
    return _TOKENS_LEFT.fullmatch(turn.content or "") is not None
