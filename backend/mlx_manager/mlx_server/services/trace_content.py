"""Contents of a request and its answer as span attributes, by OpenTelemetry's GenAI conventions.

https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-spans.md
"""

from collections import defaultdict
from collections.abc import Callable
from typing import assert_never

import msgspec

from mlx_manager.mlx_server.folding import ChoiceParts
from mlx_manager.mlx_server.types import (
    ChatRequest,
    ChatTurn,
    Choice,
    ChoiceFinished,
    Completed,
    CompletionRequest,
    GenerationEvent,
    Prefilled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
)

MAX_TEXT_CHARACTERS = 100_000
"""Longer texts are truncated."""

_Part = dict[str, object]
_json: Callable[[object], bytes] = msgspec.json.encode


def input_attributes(request: ChatRequest | CompletionRequest) -> dict[str, str]:
    match request:
        case ChatRequest():
            messages = [{"role": turn.role, "parts": _turn_parts(turn)} for turn in request.turns]
            attributes = {"gen_ai.input.messages": _json(messages).decode()}
            if request.tool_use.tools:
                tools = [
                    {
                        "type": "function",
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.parameters,
                    }
                    for tool in request.tool_use.tools
                ]
                attributes["gen_ai.tool.definitions"] = _json(tools).decode()
            return attributes
        case CompletionRequest():
            texts = [prompt if isinstance(prompt, str) else f"{len(prompt)} token ids" for prompt in request.prompts]
            messages = [{"role": "user", "parts": [_text(text)]} for text in texts]
            return {"gen_ai.input.messages": _json(messages).decode()}
        case _:
            assert_never(request)


class OutputRecorder:
    """Collects the choices from their events, also of an answer that is not completed."""

    def __init__(self) -> None:
        self._parts: defaultdict[int, ChoiceParts] = defaultdict(ChoiceParts)
        self._reasons: dict[int, str] = {}

    def add(self, event: GenerationEvent) -> None:
        match event:
            case TextDelta() | ReasoningDelta() | RefusalDelta() | ToolCallStarted() | ToolCallDelta():
                self._parts[event.index].add(event)
            case ChoiceFinished(index, reason):
                self._reasons[index] = reason
            case Started() | Prefilled() | Completed():
                pass
            case _:
                assert_never(event)

    def attributes(self) -> dict[str, str]:
        messages = [
            {
                "role": "assistant",
                "parts": _choice_parts(parts.choice(index, "stop")),
                "finish_reason": self._reasons.get(index, "error"),
            }
            for index, parts in sorted(self._parts.items())
        ]
        return {"gen_ai.output.messages": _json(messages).decode()}


def _turn_parts(turn: ChatTurn) -> list[_Part]:
    if turn.tool_call_id is not None:
        return [{"type": "tool_call_response", "id": turn.tool_call_id, "response": _cut(turn.content or "")}]
    return _parts(turn.reasoning, turn.content, turn.tool_calls)


def _choice_parts(choice: Choice) -> list[_Part]:
    return _parts(choice.reasoning, choice.text or choice.refusal, choice.tool_calls)


def _parts(reasoning: str | None, text: str | None, calls: tuple[ToolCall, ...]) -> list[_Part]:
    parts: list[_Part] = []
    if reasoning:
        parts.append({"type": "reasoning", "content": _cut(reasoning)})
    if text:
        parts.append(_text(text))
    for call in calls:
        parts.append({"type": "tool_call", "id": call.id, "name": call.name, "arguments": _cut(call.arguments)})
    return parts


def _text(text: str) -> _Part:
    return {"type": "text", "content": _cut(text)}


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[:MAX_TEXT_CHARACTERS]}… ({len(text)} characters)"
