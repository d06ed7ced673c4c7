"""Converts messages with tool calls to the forms that chat templates accept."""

import json
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]


def with_arguments_as_objects(messages: list[Message]) -> list[Message]:
    """Parses JSON arguments to objects, which most templates expect. Other arguments stay as they are."""
    return [_map_functions(message, _object_arguments) for message in messages]


def with_arguments_as_text(messages: list[Message]) -> list[Message]:
    return [_map_functions(message, _text_arguments) for message in messages]


def with_call_ids(messages: list[Message], make_id: Callable[[str], str]) -> list[Message]:
    """Replaces the ids of calls and results by `make_id(id)`."""
    return [_map_ids(message, make_id) for message in messages]


def _map_functions(message: Message, change: Callable[[Message], Message]) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": change(call["function"])} if "function" in call else call for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _object_arguments(function: Message) -> Message:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return function
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return function
    return {**function, "arguments": parsed} if isinstance(parsed, dict) else function


def _text_arguments(function: Message) -> Message:
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, str):
        return function
    return {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}


def _map_ids(message: Message, make_id: Callable[[str], str]) -> Message:
    changed = dict(message)
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            {**call, "id": make_id(call["id"])} if isinstance(call.get("id"), str) else call
            for call in message["tool_calls"]
        ]
    if isinstance(message.get("tool_call_id"), str):
        changed["tool_call_id"] = make_id(message["tool_call_id"])
    return changed
