"""Tools for a model whose chat template does not show them: the layout of Hermes, as text of ordinary turns. Pure.

The system message lists the tools, assistants' calls are their text, and results stand in user messages.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mlx_manager.mlx_server.parsers.syntax import HERMES
from mlx_manager.mlx_server.types import ChatTurn, ToolCall

Tool = dict[str, object]
"""As OpenAI's clients send it."""

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
_RESULT = "<tool_response>\n{text}\n</tool_response>"


def with_tools_as_text(turns: Iterable[ChatTurn], tools: Sequence[Tool]) -> list[ChatTurn]:
    written: list[ChatTurn] = []
    follows_result = False
    for turn in turns:
        is_result = turn.role == "tool"
        if is_result and follows_result:
            written[-1] = replace(written[-1], content=f"{written[-1].content}\n{_result(turn)}")
        else:
            written.append(ChatTurn("user", _result(turn)) if is_result else _with_calls_as_text(turn))
        follows_result = is_result
    return _with_prompt(written, tools) if tools else written


def _with_prompt(turns: list[ChatTurn], tools: Sequence[Tool]) -> list[ChatTurn]:
    prompt = _PROMPT.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if not turns or turns[0].role != "system":
        return [ChatTurn("system", prompt), *turns]
    content = f"{turns[0].content}\n\n{prompt}" if turns[0].content else prompt
    return [replace(turns[0], content=content), *turns[1:]]


def _with_calls_as_text(turn: ChatTurn) -> ChatTurn:
    if not turn.tool_calls:
        return turn
    said = [turn.content] if turn.content else []
    return replace(turn, content="\n".join([*said, *map(_call, turn.tool_calls)]), tool_calls=())


def _call(call: ToolCall) -> str:
    """As the grammar of calls has it, so that the prefix cache knows a call that the model wrote itself."""
    name = json.dumps(call.name, ensure_ascii=False)
    before = HERMES.before.replace('"{name}"', name)
    return f"{before}{_arguments(call.arguments)}{HERMES.after}"


def _arguments(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text


def _result(turn: ChatTurn) -> str:
    return _RESULT.format(text=turn.content)
