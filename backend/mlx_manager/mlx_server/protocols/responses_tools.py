"""Converts the tools and tool_choice of a Responses request to `ToolUse`. Pure.

The model sees namespaced tools among the others; the namespace is restored in their calls.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.responses_parameters import RESPONSES
from mlx_manager.mlx_server.protocols.tools import NO_PARAMETERS, check_names, check_parameters, find_tool
from mlx_manager.mlx_server.protocols.wire import json_text
from mlx_manager.mlx_server.schemas.responses import InputTokensRequest, Item, Tool, ToolChoice
from mlx_manager.mlx_server.types import CUSTOM_PARAMETERS, Grammar, GrammarKind, ToolDefinition, ToolUse

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_SYNTAXES: Mapping[str, GrammarKind] = {"lark": "lark", "regex": "regex"}


@dataclass(frozen=True, slots=True)
class WireTool:
    """The name of a tool on the wire, which may differ from the name that the model uses."""

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass(frozen=True, slots=True)
class ResponseTools:
    use: ToolUse
    by_name: Mapping[str, WireTool]
    """Keyed by the name that the model uses."""

    def name_of_call(self, name: str, namespace: str | None) -> str:
        """The name that the model uses for a tool, also for tools that are no longer defined."""
        known = WireTool(name, namespace), WireTool(name, namespace, custom=True)
        return next((shown for shown, tool in self.by_name.items() if tool in known), name)


@dataclass(frozen=True, slots=True)
class _Given:
    tool: Tool
    where: str
    namespace: str | None = None


def response_tools(body: InputTokensRequest, reject_unknown: bool, warnings: list[str]) -> ResponseTools:
    """Adds a warning for each tool left out. Raises InvalidRequest and UnsupportedParameter, which name the field."""
    given = list(_all_tools(body))
    hosted = [one for one in given if one.tool.type not in ("function", "custom")]
    ours = [one for one in given if one.tool.type in ("function", "custom")]
    names = Counter(str(one.tool.name) for one in ours)
    made = [(one, _definition(one, names[str(one.tool.name)] > 1, reject_unknown)) for one in ours]
    tools = tuple(definition for _, definition in made)
    check_names(tools, "name")
    warnings += _left_out(hosted, has_others=bool(tools))
    by_name = {tool.name: WireTool(str(one.tool.name), one.namespace, tool.custom) for one, tool in made}
    parallel = body.parallel_tool_calls is not False
    return ResponseTools(_as_chosen(body.tool_choice, tools, parallel, reject_unknown), by_name)


def _all_tools(body: InputTokensRequest) -> Iterator[_Given]:
    """The tools of the request and of its input items."""
    yield from _flattened(body.tools or (), "tools")
    for i, item in enumerate(body.input if isinstance(body.input, list) else ()):
        if isinstance(item, Item) and item.type == "additional_tools":
            yield from _flattened(item.tools or (), f"input[{i}].tools")


def _flattened(tools: Sequence[Tool], where: str) -> Iterator[_Given]:
    for i, tool in enumerate(tools):
        if tool.type != "namespace":
            yield _Given(tool, f"{where}[{i}]")
            continue
        for j, inner in enumerate(tool.tools or ()):
            yield _Given(inner, f"{where}[{i}].tools[{j}]", tool.name)


def _definition(given: _Given, is_ambiguous: bool, reject_unknown: bool) -> ToolDefinition:
    tool, where = given.tool, given.where
    check_unused(tool.model_extra, reject_unknown, f"{where}.", RESPONSES)
    name = tool.name
    if name is None or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"Invalid tool name {str(name)[:130]!r}. Use 1 to 128 letters, digits, '_', '-' and '.'.",
            param=f"{where}.name",
        )
    if is_ambiguous and given.namespace is not None:
        name = f"{given.namespace}__{name}"
    described = len(tool.description or "")
    if tool.type == "custom":
        grammar = _grammar(tool, where)
        length = described + (len(grammar.source) if grammar is not None else 0)
        return ToolDefinition(name, tool.description, CUSTOM_PARAMETERS, length, custom=True, grammar=grammar)
    parameters = tool.parameters if tool.parameters is not None else NO_PARAMETERS
    check_parameters(parameters, f"{where}.parameters")
    length = described + len(json_text(parameters, f"{where}.parameters"))
    return ToolDefinition(name, tool.description, parameters, length, tool.strict is True)


def _grammar(tool: Tool, where: str) -> Grammar | None:
    requested = tool.format
    if requested is None or requested.type == "text":
        return None
    kind = _SYNTAXES.get(requested.syntax or "")
    if requested.type != "grammar" or kind is None:
        raise UnsupportedParameter(
            f"A format of type {requested.type[:100]!r} and syntax {str(requested.syntax)[:100]!r} is not supported. "
            "Use type 'text', or 'grammar' with syntax 'lark' or 'regex'.",
            param=f"{where}.format",
        )
    if requested.definition is None:
        raise InvalidRequest("The grammar has no 'definition'. Send one.", param=f"{where}.format.definition")
    return Grammar(kind, requested.definition, f"{where}.format.definition")


def _left_out(hosted: list[_Given], *, has_others: bool) -> Iterator[str]:
    """Leaves out hosted tools if there are others. Refuses them if they are the only tools."""
    for one in hosted:
        kind = one.tool.type[:100]
        if not has_others:
            raise UnsupportedParameter(
                f"Tools of type {kind!r} run on OpenAI's servers, not on this one. Remove it.",
                param=f"{one.where}.type",
            )
        yield f"{one.where} is left out: this server does not run tools of type {kind!r}"


def _as_chosen(
    choice: str | ToolChoice | None, tools: tuple[ToolDefinition, ...], parallel: bool, reject_unknown: bool
) -> ToolUse:
    if choice is None or choice == "auto":
        return ToolUse(tools=tools, callable=tools, parallel=parallel)
    if choice == "none":
        return ToolUse()
    if isinstance(choice, str):
        if not tools:
            raise InvalidRequest("tool_choice is 'required', but tools is empty. Send tools.", param="tool_choice")
        return ToolUse(tools=tools, callable=tools, required=True, parallel=parallel)
    check_unused(choice.model_extra, reject_unknown, "tool_choice.", RESPONSES)
    match choice.type:
        case "function" | "custom":
            return ToolUse(tools=tools, callable=(_named(choice, tools),), required=True, parallel=False)
        case "allowed_tools":
            return _allowed(choice, tools, parallel)
        case other:
            raise UnsupportedParameter(
                f"tool_choice of type {other[:100]!r} is not supported. Use 'none', 'auto', 'required', or an object "
                "of type 'function', 'custom' or 'allowed_tools'.",
                param="tool_choice.type",
            )


def _named(choice: ToolChoice, tools: tuple[ToolDefinition, ...]) -> ToolDefinition:
    if choice.name is None:
        raise InvalidRequest(f"tool_choice of type {choice.type!r} has no 'name'. Send one.", param="tool_choice.name")
    return find_tool(choice.name, tools)


def _allowed(choice: ToolChoice, tools: tuple[ToolDefinition, ...], parallel: bool) -> ToolUse:
    """If no call is enforced, the model sees only the allowed tools."""
    ours = [tool for tool in choice.tools or () if tool.type in ("function", "custom")]
    allowed = tuple(find_tool(tool.name or "", tools) for tool in ours)
    if not allowed:
        raise InvalidRequest(
            "tool_choice.tools contains no tool of this request. Send at least one.", param="tool_choice.tools"
        )
    if choice.mode == "required":
        return ToolUse(tools=tools, callable=allowed, required=True, parallel=parallel)
    return ToolUse(tools=allowed, callable=allowed, parallel=parallel)
