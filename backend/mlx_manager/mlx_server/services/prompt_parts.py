"""Finds the part of a rendered chat in which a token lies: the system prompt, the tools or the messages.

Renders the chat again without a part: the text up to the first difference comes before that part.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.models.pool import LoadedModel
from mlx_manager.mlx_server.models.tokenization import make_decoder
from mlx_manager.mlx_server.services.prompts import Prompt, PromptRules, render
from mlx_manager.mlx_server.services.turns import leading_systems
from mlx_manager.mlx_server.types import ChatRequest, ChatTurn, ToolUse

logger = logging.getLogger(__name__)

Part = Literal["system", "tools", "messages"]
_OTHER_TEXT = "\u2026"


async def part_at(
    position: int, parts: Sequence[Part], model: LoadedModel, request: ChatRequest, rules: PromptRules, prompt: Prompt
) -> Part:
    """The last of the `parts` that begins at the token `position` or before it, else the first of them.

    Renders up to four times, in a thread. A failure to render is no failure of the request.
    """

    def find() -> Part:
        before = len(make_decoder(model.tokenizer, skip_special_tokens=False)(prompt.tokens[:position]))
        text = render(model, request, rules)
        starts = {part: _start(part, text, model, request, rules) for part in parts}
        found = {part: start for part, start in starts.items() if start is not None}
        begun = [part for part, start in found.items() if start <= before]
        if begun:
            return max(begun, key=lambda part: found[part])
        return min(found, key=lambda part: found[part], default=parts[0])

    try:
        async with model.language.rendering:
            return await model.language.templates.in_thread(find)
    except ServerError as exc:
        logger.debug("Cannot render the chat again, to find a part of it: %s", exc)
        return parts[0]


def _start(part: Part, text: str, model: LoadedModel, request: ChatRequest, rules: PromptRules) -> int | None:
    """Where the part begins in the text, in characters. None for a chat without it."""
    other = _without(part, request)
    if other is None:
        return None
    try:
        return _common_length(text, render(model, other, rules))
    except ServerError:  # the template requires the part
        return None


def _without(part: Part, request: ChatRequest) -> ChatRequest | None:
    turns, first = request.turns, leading_systems(request.turns)
    match part:
        case "tools":
            return replace(request, tool_use=ToolUse()) if request.tool_use.tools else None
        case "system" if first > 0:
            return replace(request, turns=(ChatTurn("system", _OTHER_TEXT), *turns[first:]))
        case "messages" if first < len(turns):
            other = replace(turns[first], content=_OTHER_TEXT, tool_calls=(), reasoning=None)
            return replace(request, turns=(*turns[:first], other, *turns[first + 1 :]))
        case _:
            return None


def _common_length(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
