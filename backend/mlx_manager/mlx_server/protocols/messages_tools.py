"""Converts the tools and tool_choice of Anthropic Messages to `ToolUse`. Pure."""

import re
from collections.abc import Iterator

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.messages_parameters import MESSAGES
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.tools import check_names, check_parameters, find_tool
from mlx_manager.mlx_server.protocols.wire import json_text
from mlx_manager.mlx_server.schemas.anthropic import CountTokensRequest, Tool, ToolChoice
from mlx_manager.mlx_server.types import ToolDefinition, ToolUse

SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "advisor_")
"""Type prefixes of tools that run on Anthropic's servers; agents send them along with their own tools."""
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")


def messages_tool_use(body: CountTokensRequest, reject_unknown: bool, warnings: list[str]) -> ToolUse:
    """Adds a warning for each tool left out. Raises InvalidRequest and UnsupportedParameter, which name the field."""
    given = [(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())]
    of_servers = [(tool, where) for tool, where in given if (tool.type or "").startswith(SERVER_TOOLS)]
    tools = tuple(_definition(tool, where, reject_unknown) for tool, where in given if (tool, where) not in of_servers)
    check_names(tools, "name")
    choice = body.tool_choice if body.tool_choice is not None else ToolChoice(type="auto")
    check_unused(choice.model_extra, reject_unknown, "tool_choice.", MESSAGES)
    warnings += _left_out(of_servers, choice, has_others=bool(tools))
    return _as_chosen(choice, tools)


def _as_chosen(choice: ToolChoice, tools: tuple[ToolDefinition, ...]) -> ToolUse:
    parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "none":
            return ToolUse()
        case "auto":
            return ToolUse(tools=tools, callable=tools, parallel=parallel)
        case "any":
            if not tools:
                raise InvalidRequest("tool_choice is 'any', but tools is empty. Send tools.", param="tool_choice")
            return ToolUse(tools=tools, callable=tools, required=True, parallel=parallel)
        case "tool":
            if choice.name is None:
                raise InvalidRequest("tool_choice of type 'tool' has no 'name'. Send one.", param="tool_choice.name")
            named = find_tool(choice.name, tools)
            return ToolUse(tools=tools, callable=(named,), required=True, parallel=parallel)
        case other:
            raise UnsupportedParameter(
                f"tool_choice of type {other[:100]!r} is not supported. Use 'auto', 'any', 'tool' or 'none'.",
                param="tool_choice.type",
            )


def _left_out(of_servers: list[tuple[Tool, str]], choice: ToolChoice, *, has_others: bool) -> Iterator[str]:
    """Leaves out server-side tools if there are others. Refuses them if they are the only tools or are required."""
    for tool, where in of_servers:
        if not has_others or (choice.type == "tool" and choice.name == tool.name):
            raise UnsupportedParameter(
                f"Tools of type {str(tool.type)[:100]!r} run on Anthropic's servers, not on this one. Remove the tool.",
                param=f"{where}.type",
            )
        yield f"{where} is left out: tools of type {str(tool.type)[:100]!r} run on Anthropic's servers"


def _definition(tool: Tool, where: str, reject_unknown: bool) -> ToolDefinition:
    if tool.type not in (None, "custom"):
        raise UnsupportedParameter(
            f"Tools of type {str(tool.type)[:100]!r} are not supported. Send a name and an 'input_schema', "
            "without a type.",
            param=f"{where}.type",
        )
    check_unused(tool.model_extra, reject_unknown, f"{where}.", MESSAGES)
    if tool.name is None or not _NAME.fullmatch(tool.name):
        raise InvalidRequest(
            f"Invalid tool name {str(tool.name)[:130]!r}. Use 1 to 128 letters, digits, '_', '-' and '.'.",
            param=f"{where}.name",
        )
    if tool.input_schema is None:
        raise InvalidRequest("The tool has no 'input_schema'. Send one.", param=f"{where}.input_schema")
    check_parameters(tool.input_schema, f"{where}.input_schema")
    text_length = len(json_text(tool.input_schema, f"{where}.input_schema")) + len(tool.description or "")
    return ToolDefinition(tool.name, tool.description, tool.input_schema, text_length, tool.strict is True)
