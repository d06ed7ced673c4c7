"""Calls of custom tools, which take text: `<custom_tool_call name="...">`, the raw text, `</custom_tool_call>`.

Models write the tags on separate lines; the first closing tag ends the text.

No chat template supports custom tools, so the server defines this format, for all models that write calls between
tags. The arguments of the parsed call are JSON, as for a function with one argument.
"""

import json
from collections.abc import Mapping, Sequence

from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pieces import Tool, ToolCallArguments, ToolCallEnd, ToolCallStart, find_tool
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source
from mlx_manager.mlx_server.types import CUSTOM_INPUT

BEGIN, NAME_END, TAG_END = '<custom_tool_call name="', '">\n', "</custom_tool_call>"
END = f"\n{TAG_END}"
_ANY_TEXT = "/(?s:.*)/"


class CustomCalls:
    begins = (BEGIN,)
    unmarked: tuple[str, ...] = ()
    separators: tuple[str, ...] = ()

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        name = yield from source.text_until('"')
        tool = find_tool(name, tools)
        if tool is None or not tool.custom:
            raise Malformed("the call does not name a custom tool")
        yield from source.expect(">")
        yield from source.accept("\n")
        source.emit(ToolCallStart(tool.name))
        source.emit(ToolCallArguments(f'{{"{CUSTOM_INPUT}": "'))
        end = yield from source.until((END, TAG_END), lambda text: source.emit(ToolCallArguments(_escaped(text))))
        if end is None and source.is_cut_off:
            return  # the call stays incomplete
        source.emit(ToolCallArguments('"}'))
        source.emit(ToolCallEnd())


def custom_call(name: str, text: str) -> str:
    """The text of a call, as a model writes it."""
    return f"{BEGIN}{name}{NAME_END}{text}{END}"


def custom_call_rules(tools: Sequence[Tool], grammars: Mapping[str, str], *, parallel: bool) -> str:
    """llguidance Lark rules: `custom_calls` matches only calls of `tools`, with text that matches the tool's grammar.

    `grammars`: the Lark text of each tool that has a grammar.
    """
    calls = [f"{json.dumps(tool.name + NAME_END)} custom_{n}" for n, tool in enumerate(tools)]
    rules = [f"custom_call: {json.dumps(BEGIN)} custom_named", f"custom_named: {' | '.join(calls)}"]
    rules.append('custom_calls: custom_call ("\\n" custom_call)*' if parallel else "custom_calls: custom_call")
    for n, tool in enumerate(tools):
        if tool.name in grammars:
            rules.append(f"custom_{n}: %lark {{\n{grammars[tool.name]}\n}} {json.dumps(END)}")
        else:
            rules.append(f"custom_{n}[suffix={json.dumps(TAG_END)}]: {_ANY_TEXT}")
    return "".join(f"{rule}\n" for rule in rules)


def text_with_custom_calls(rules: str, special_tokens: Sequence[int], *, parallel: bool) -> str:
    """llguidance Lark of any text in which every text that begins like a custom call is a valid call.

    `special_tokens` may occur anywhere outside calls.
    """
    lines = [
        "%llguidance {}",
        f"said_and_begin[suffix={json.dumps(BEGIN)}]: {_ANY_TEXT}",
        f"SAID: /(?s:.+)/ & ~/(?s:.*){BEGIN}(?s:.*)/",
        "said_and_called: said_and_begin custom_named",
        f"said: said_and_called{'*' if parallel else '?'} SAID?",
    ]
    tokens = " | ".join(f"<[{token}]>" for token in special_tokens)
    lines.append(f"start: said (({tokens}) said)*" if tokens else "start: said")
    return "\n".join([*lines, rules])


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
