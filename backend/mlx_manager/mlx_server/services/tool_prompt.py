"""Writes tools as text of ordinary turns, for chat templates without tool support. Pure.

The system message lists the tools, assistant messages hold the calls, and user messages hold the results. Functions
use the layout of Hermes. Custom tools, which no chat template supports, use the layout of `parsers/custom.py`.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mlx_manager.mlx_server.parsers.custom import custom_call
from mlx_manager.mlx_server.parsers.syntax import HERMES
from mlx_manager.mlx_server.protocols.custom_input import custom_input
from mlx_manager.mlx_server.types import ChatTurn, ToolCall, ToolDefinition

Tool = dict[str, object]
"""In OpenAI's form."""

_PROMPT = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>

The results of the calls are given within <tool_response></tool_response> XML tags. Answer the user from them in your \
own words."""
_CUSTOM_PROMPT = """\
# Custom tools

You may call these tools with plain text. A call is the tag below with the name of the tool, the text as it is without \
escapes, and the closing tag:
{layout}

{tools}"""
_RESULT = "<tool_response>\n{text}\n</tool_response>"


def with_tools_as_text(turns: Iterable[ChatTurn], tools: Sequence[Tool]) -> list[ChatTurn]:
    written = _as_text(turns, lambda call: True, _call)
    prompt = _PROMPT.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    return _with_prompt(written, prompt) if tools else written


def with_custom_tools_as_text(turns: Iterable[ChatTurn], tools: Sequence[ToolDefinition]) -> list[ChatTurn]:
    """`tools` are custom tools. Calls of other tools stay calls."""
    names = {tool.name for tool in tools}
    written = _as_text(turns, lambda call: call.name in names, _custom_call)
    return _with_prompt(
        written,
        _CUSTOM_PROMPT.format(
            layout=custom_call("the name of the tool", "the text"), tools="\n\n".join(map(_described, tools))
        ),
    )


def _as_text(
    turns: Iterable[ChatTurn], is_text: Callable[[ToolCall], bool], write: Callable[[ToolCall], str]
) -> list[ChatTurn]:
    """The turns with some calls written as assistant text, and the results of these calls as user text."""
    written: list[ChatTurn] = []
    follows_result = False
    others: set[str] = set()
    for turn in turns:
        others |= {call.id for call in turn.tool_calls if not is_text(call)}
        is_result = turn.role == "tool" and turn.tool_call_id not in others
        if is_result and follows_result:
            written[-1] = replace(written[-1], content=f"{written[-1].content}\n{_result(turn)}")
        else:
            written.append(ChatTurn("user", _result(turn)) if is_result else _with_calls_as_text(turn, is_text, write))
        follows_result = is_result
    return written


def _with_prompt(turns: list[ChatTurn], prompt: str) -> list[ChatTurn]:
    if not turns or turns[0].role != "system":
        return [ChatTurn("system", prompt), *turns]
    content = f"{turns[0].content}\n\n{prompt}" if turns[0].content else prompt
    return [replace(turns[0], content=content), *turns[1:]]


def _with_calls_as_text(
    turn: ChatTurn, is_text: Callable[[ToolCall], bool], write: Callable[[ToolCall], str]
) -> ChatTurn:
    calls = [call for call in turn.tool_calls if is_text(call)]
    if not calls:
        return turn
    content = [turn.content] if turn.content else []
    others = tuple(call for call in turn.tool_calls if call not in calls)
    return replace(turn, content="\n".join([*content, *map(write, calls)]), tool_calls=others)


def _call(call: ToolCall) -> str:
    """Written as the grammar of calls requires, so that a call that the model generated hits the prefix cache."""
    name = json.dumps(call.name, ensure_ascii=False)
    before = HERMES.before.replace('"{name}"', name)
    return f"{before}{_arguments(call.arguments)}{HERMES.after}"


def _custom_call(call: ToolCall) -> str:
    return custom_call(call.name, custom_input(call.arguments))


def _described(tool: ToolDefinition) -> str:
    lines = [f"## {tool.name}", tool.description]
    if tool.grammar is not None:
        lines += [f"The text follows this {tool.grammar.kind} grammar:", tool.grammar.source.strip()]
    return "\n".join(filter(None, lines))


def _arguments(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text


def _result(turn: ChatTurn) -> str:
    return _RESULT.format(text=turn.content)
