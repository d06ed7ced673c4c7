"""Drops the oldest turns of a chat that is too long for its model, for `truncation: "auto"`."""

import math
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from mlx_manager.mlx_server.errors import ContextLengthExceeded
from mlx_manager.mlx_server.services.turns import leading_systems
from mlx_manager.mlx_server.types import ChatRequest, ChatTurn, GenerationEvents


async def without_oldest_turns(
    generate: Callable[[ChatRequest], GenerationEvents], request: ChatRequest
) -> GenerationEvents:
    """Raises ContextLengthExceeded if the turns that must stay are too long."""
    while True:
        try:
            async with aclosing(generate(request)) as events:
                async for event in events:
                    yield event
                return
        except ContextLengthExceeded as exc:  # before the first event
            turns = _shortened(request.turns, exc)
            if len(turns) == len(request.turns):
                raise
            left_out = len(request.turns) - len(turns)
            request.record.warnings.append(f"input: dropped the oldest {left_out} turns: the prompt was too long")
            request.record.error = None
            request = replace(request, turns=turns)


def _shortened(turns: tuple[ChatTurn, ...], exc: ContextLengthExceeded) -> tuple[ChatTurn, ...]:
    """Drops the oldest turns after the leading system messages; keeps the last user turn and all after it."""
    if exc.tokens is None or exc.limit is None:
        return turns
    first = leading_systems(turns)
    last_question = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=first)
    surplus = math.ceil(sum(turn.text_length for turn in turns) * (exc.tokens - exc.limit + 1) / exc.tokens)
    end, dropped = first, 0
    while end < last_question and (dropped < surplus or turns[end].role not in ("user", "system")):
        dropped += turns[end].text_length
        end += 1
    return (*turns[:first], *turns[end:])
