"""Builds llguidance Lark grammars that match only calls of given tools, to enforce `tool_choice`."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count

from mlx_manager.mlx_server.parsers.parameter_schema import (
    ParameterKind,
    keywords_beyond_parameters,
    parameter_kind,
    tool_parameters,
)
from mlx_manager.mlx_server.parsers.pieces import JsonSchema, Tool, ToolGrammar, UnsupportedToolSchema
from mlx_manager.mlx_server.parsers.syntax import CallSyntax, ParameterSyntax
from mlx_manager.mlx_server.types import SCHEMA_LABEL

_KEY = re.compile(r"[-.\w]+")
ANY_TEXT = "/(?s:.*)/"


class CallGrammar:
    """Builds the rules. `special_tokens`: ids of markers that are single tokens and never result from text."""

    def __init__(self, syntax: CallSyntax, special_tokens: Mapping[str, int]) -> None:
        self._syntax = syntax
        self._special_tokens = special_tokens
        self._rules: dict[str, str] = {}
        self._numbers = count()
        self._unenforced: list[str] = []

    def of_calls(self, tools: Sequence[Tool], parallel: bool, prologue: str = "") -> ToolGrammar:
        """The grammar of the `prologue` and one call, or several if `parallel` and the format allows it."""
        calls = self._rule(" | ".join(self._call(tool) for tool in tools))
        if parallel and self._syntax.between is not None:
            calls += f" ({self.literal(self._syntax.between)} {calls})*"
        start = f"{prologue} {self.literal(self._syntax.begin)} {calls} {self.literal(self._syntax.end)}"
        rules = "".join(f"{name}: {body}\n" for name, body in self._rules.items())
        return ToolGrammar(f"%llguidance {{}}\nstart: {start}\n{rules}", tuple(self._unenforced))

    def literal(self, text: str) -> str:
        """`text` as a sequence of strings and special tokens."""
        known = sorted(self._special_tokens, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, known)) + ")", text) if known else [text]
        return " ".join(
            f"<[{self._special_tokens[part]}]>" if part in self._special_tokens else json.dumps(part)
            for part in parts
            if part
        )

    def text_until(self, end: str, text: str = ANY_TEXT) -> str:
        """Any text up to and including the first `end`."""
        if not end or any(end.startswith(token) for token in self._special_tokens):
            return f"{text} {self.literal(end)}"
        return self._rule(text, f"[suffix={json.dumps(end)}]")

    def _call(self, tool: Tool) -> str:
        parameters = self._syntax.parameters
        arguments = self._object(tool) if parameters is None else self._parameters(tool, parameters)
        before, after = (text.replace("{name}", tool.name) for text in (self._syntax.before, self._syntax.after))
        return self._rule(f"{self.literal(before)} {arguments} {self.literal(after)}")

    def _object(self, tool: Tool) -> str:
        return self._rule(_json({"type": "object", **tool.parameters}, tool))

    def _parameters(self, tool: Tool, syntax: ParameterSyntax) -> str:
        """Required parameters come first, so optional ones follow a separator. Without them, any may be first."""
        self._leave_out(keywords_beyond_parameters(tool), tool, "the top level")
        parameters = tool_parameters(tool)
        rules = {key: self._parameter(key, tool, syntax) for key in parameters}
        required = [rules[key] for key, is_required in parameters.items() if is_required]
        optional = [rules[key] for key, is_required in parameters.items() if not is_required]
        between = self.literal(syntax.between)
        if required or not syntax.between:
            return " ".join([f" {between} ".join(required), *(f"({between} {rule})?" for rule in optional)])
        beginnings = (
            " ".join([first, *(f"({between} {rule})?" for rule in optional[n + 1 :])])
            for n, first in enumerate(optional)
        )
        return f"({' | '.join(beginnings)})?" if optional else ""

    def _parameter(self, key: str, tool: Tool, syntax: ParameterSyntax) -> str:
        if not _KEY.fullmatch(key):
            raise UnsupportedToolSchema(
                f"The call format of this model cannot enforce a call of {tool.name!r} with parameter {key!r}. "
                "Use only letters, digits, '_', '-' and '.' in its name.",
                param="tools",
            )
        before = self.literal(syntax.before.replace("{key}", key))
        return self._rule(f"{before} {self._value(key, tool, syntax)}")

    def _value(self, key: str, tool: Tool, syntax: ParameterSyntax) -> str:
        kind = parameter_kind(tool, key)
        if syntax.strings == "json":
            return f"{_json(kind.schema, tool)} {self.literal(syntax.after)}"
        if not kind.is_string:
            if syntax.strings == "quoted" and kind.is_nested:
                raise UnsupportedToolSchema(
                    f"The call format of this model cannot enforce a call of {tool.name!r}, because parameter "
                    f"{key!r} is a list or an object. Set tool_choice to 'auto', or use strings, numbers and booleans.",
                    param="tools",
                )
            return f"{_json(kind.schema, tool)} {self.literal(syntax.after)}"
        self._leave_out(kind.beyond, tool, f"properties.{key}")
        if syntax.strings == "raw":
            return self._text(kind, syntax.after)
        return f"{self.literal(syntax.quote)} {self._text(kind, syntax.quote)} {self.literal(syntax.after)}"

    def _text(self, kind: ParameterKind, end: str) -> str:
        if kind.choices:
            return f"({' | '.join(json.dumps(choice) for choice in kind.choices)}) {self.literal(end)}"
        low, high = kind.length
        if low == 0 and high is None:
            return self.text_until(end)
        return self.text_until(end, f"/(?s:.{{{low},{'' if high is None else high}}})/")

    def _leave_out(self, keywords: Iterable[str], tool: Tool, place: str) -> None:
        for keyword in keywords:
            fault = f"{_name(tool)}: {keyword!r} at {place}"
            if tool.strict:
                raise UnsupportedToolSchema(
                    f"{fault} cannot be enforced in the call format of this model, and strict is true. Remove the "
                    "keyword, or set strict to false.",
                    param="tools",
                )
            self._unenforced.append(f"{fault} is not enforced")

    def _rule(self, body: str, options: str = "") -> str:
        name = f"rule_{next(self._numbers)}"
        self._rules[name + options] = body
        return name


def _name(tool: Tool) -> str:
    return f"tool {tool.name!r}"


def _json(schema: JsonSchema, tool: Tool) -> str:
    return f"%json {json.dumps({**schema, SCHEMA_LABEL: {'what': _name(tool), 'strict': tool.strict}})}"
