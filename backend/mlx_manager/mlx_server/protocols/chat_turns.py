"""Converts the messages of a chat request to turns for the chat template. Pure."""

import json

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.types import ChatTurn, ToolCall

_TEMPLATE_ROLES = {"developer": "system", "function": "tool"}
"""Wire roles and the names that chat templates use for them."""
LEGACY_CALL_ID = "call00000"
"""The id for a `function_call`, which has none; some templates require nine letters and digits."""


def chat_turns(messages: list[openai.ChatMessage], reject_unknown: bool) -> tuple[ChatTurn, ...]:
    """Raises InvalidRequest and UnsupportedParameter, which name the field."""
    return tuple(_turn(message, f"messages[{i}]", reject_unknown) for i, message in enumerate(messages))


def _turn(message: openai.ChatMessage, where: str, reject_unknown: bool) -> ChatTurn:
    check_unused(message.model_extra, reject_unknown, f"{where}.")
    calls = _tool_calls(message, where, reject_unknown)
    content = _text(message, where, reject_unknown)
    if content is None and not calls:
        raise InvalidRequest("The message has no content. Send a string.", param=f"{where}.content")
    if calls and message.role != "assistant":
        raise InvalidRequest(
            f"A message of role {message.role!r} has tool calls. Send tool calls only in assistant messages.",
            param=f"{where}.{'tool_calls' if message.tool_calls else 'function_call'}",
        )
    return ChatTurn(
        role=_TEMPLATE_ROLES.get(message.role, message.role),
        content=content,
        name=message.name,
        tool_calls=calls,
        tool_call_id=LEGACY_CALL_ID if message.role == "function" else message.tool_call_id,
        reasoning=message.reasoning_content if message.reasoning_content is not None else message.reasoning,
    )


def _text(message: openai.ChatMessage, where: str, reject_unknown: bool) -> str | None:
    if message.content is None:
        return message.refusal
    if isinstance(message.content, str):
        return message.content
    return "".join(_part_text(part, f"{where}.content[{i}]", reject_unknown) for i, part in enumerate(message.content))


def _part_text(part: openai.ContentPart, where: str, reject_unknown: bool) -> str:
    if part.type not in ("text", "refusal"):
        raise UnsupportedParameter(f"Content of type {part.type[:100]!r} is not supported. Send text.", param=where)
    check_unused(part.model_extra, reject_unknown, f"{where}.")
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise InvalidRequest(f"The content part of type {part.type!r} has no {part.type!r}. Send it.", param=where)
    return text


def _tool_calls(message: openai.ChatMessage, where: str, reject_unknown: bool) -> tuple[ToolCall, ...]:
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        return tuple(_tool_call(call, f"{where}.tool_calls[{i}]", reject_unknown) for i, call in calls)
    if message.function_call is not None:
        check_unused(message.function_call.model_extra, reject_unknown, f"{where}.function_call.")
        return (ToolCall(LEGACY_CALL_ID, message.function_call.name, _arguments(message.function_call)),)
    return ()


def _tool_call(call: openai.MessageToolCall, where: str, reject_unknown: bool) -> ToolCall:
    if call.type != "function":
        raise UnsupportedParameter(
            f"Tool calls of type {call.type[:100]!r} are not supported. Use 'function'.", param=f"{where}.type"
        )
    if call.function is None:
        raise InvalidRequest(
            "The tool call has no 'function'. Send one with a name and arguments.", param=f"{where}.function"
        )
    check_unused(call.model_extra, reject_unknown, f"{where}.")
    check_unused(call.function.model_extra, reject_unknown, f"{where}.function.")
    return ToolCall(call.id, call.function.name, _arguments(call.function))


def _arguments(function: openai.FunctionCall) -> str:
    """The arguments as JSON text; some clients send an object instead."""
    if isinstance(function.arguments, str):
        return function.arguments
    return json.dumps(function.arguments, ensure_ascii=False)
