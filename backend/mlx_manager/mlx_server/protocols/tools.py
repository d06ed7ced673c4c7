"""Converts the tools and tool_choice of a chat request to `ToolUse`. Pure."""

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.wire import json_text
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.types import ToolDefinition, ToolUse

NO_PARAMETERS: dict[str, object] = {"type": "object", "properties": {}}


def tool_use(body: openai.ChatCompletionRequest, reject_unknown: bool) -> ToolUse:
    """Raises InvalidRequest and UnsupportedParameter, which name the field.

    The model does not see tools that it must not call, because it might call them anyway.
    """
    given = body.tools if body.tools is not None else []
    tools = tuple(_definition(tool, f"tools[{i}]", reject_unknown) for i, tool in enumerate(given))
    check_names(tools, "function.name")
    choice = body.tool_choice if body.tool_choice is not None else "auto"
    named = _named(choice, tools, reject_unknown) if isinstance(choice, openai.NamedToolChoice) else None
    if choice == "required" and not tools:
        raise InvalidRequest("tool_choice is 'required', but tools is empty. Send tools.", param="tool_choice")
    if choice == "none":
        return ToolUse()
    return ToolUse(
        tools=tools,
        callable=tools if named is None else (named,),
        required=choice != "auto",
        parallel=named is None and body.parallel_tool_calls is not False,
    )


def _definition(tool: openai.Tool, where: str, reject_unknown: bool) -> ToolDefinition:
    if tool.type != "function":
        raise UnsupportedParameter(
            f"Tools of type {tool.type[:100]!r} are not supported. Use 'function'.", param=f"{where}.type"
        )
    if tool.function is None:
        raise InvalidRequest("The tool has no 'function'. Send one with a name.", param=f"{where}.function")
    check_unused(tool.model_extra, reject_unknown, f"{where}.")
    check_unused(tool.function.model_extra, reject_unknown, f"{where}.function.")
    function = tool.function
    parameters = function.parameters if function.parameters is not None else NO_PARAMETERS
    check_parameters(parameters, f"{where}.function.parameters")
    text_length = len(json_text(parameters, f"{where}.function.parameters")) + len(function.description or "")
    return ToolDefinition(function.name, function.description, parameters, text_length, function.strict is True)


def check_parameters(parameters: dict[str, object], where: str) -> None:
    """Checks what templates and parsers require; the rest of the schema is checked when it is enforced."""
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    if parameters.get("type", "object") != "object":
        raise InvalidRequest("The schema of a tool must describe an object. Send type 'object'.", param=where)
    if not isinstance(properties, dict) or not all(isinstance(schema, dict) for schema in properties.values()):
        raise InvalidRequest("'properties' is invalid. Send an object of JSON schemas.", param=f"{where}.properties")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise InvalidRequest("'required' is invalid. Send a list of names.", param=f"{where}.required")


def check_names(tools: tuple[ToolDefinition, ...], field: str) -> None:
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.name in seen:
            raise InvalidRequest(f"Duplicate tool name {tool.name!r}. Rename one tool.", param=f"tools[{i}].{field}")
        seen.add(tool.name)


def _named(choice: openai.NamedToolChoice, tools: tuple[ToolDefinition, ...], reject_unknown: bool) -> ToolDefinition:
    if choice.type != "function":
        raise UnsupportedParameter(
            f"tool_choice of type {choice.type[:100]!r} is not supported. Use 'none', 'auto', 'required' or a "
            "function.",
            param="tool_choice.type",
        )
    if choice.function is None:
        raise InvalidRequest("tool_choice has no 'function'. Send one with a name.", param="tool_choice.function")
    check_unused(choice.model_extra, reject_unknown, "tool_choice.")
    return find_tool(choice.function.name, tools)


def find_tool(name: str, tools: tuple[ToolDefinition, ...]) -> ToolDefinition:
    """The tool with the name from tool_choice. Raises InvalidRequest."""
    found = next((tool for tool in tools if tool.name == name), None)
    if found is None:
        known = ", ".join(tool.name for tool in tools) or "empty"
        raise InvalidRequest(
            f"tool_choice names {name[:100]!r}, which is not in tools ({known[:300]}). Use the name of a tool.",
            param="tool_choice",
        )
    return found
