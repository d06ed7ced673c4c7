"""Checks at load that a chat template renders tools, calls and results, and that the parser reads the calls back."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from mlx_manager.mlx_server.models.adapters.base import TEMPLATE_FAILURES, ModelAdapter
from mlx_manager.mlx_server.models.tokenization import Tokenizer
from mlx_manager.mlx_server.parsers.formats import OutputFormat
from mlx_manager.mlx_server.parsers.pieces import Piece, Tool, ToolCallArguments, ToolCallEnd, ToolCallStart

NullContent = Literal["null", "absent", "empty"]
"""The content of a message with calls and no text: None, absent, or ""."""

TOOL = Tool(
    "look_up_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
)
ARGUMENTS = {"city": 'São "Paulo"', "days": 3}

QUESTION = {"role": "user", "content": "How is the weather?"}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdef123",
            "type": "function",
            "function": {"name": TOOL.name, "arguments": json.dumps(ARGUMENTS, ensure_ascii=False)},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": TOOL.name, "content": "sunny37"}
OPENAI_TOOL = {
    "type": "function",
    "function": {"name": TOOL.name, "description": "The weather of the next days.", "parameters": TOOL.parameters},
}


@dataclass(frozen=True, slots=True)
class ToolCheck:
    """`fault` says why the template does not support tools natively, or what may fail although it does."""

    native: bool
    null_content: NullContent = "empty"
    fault: str | None = None


def check_tools(tokenizer: Tokenizer, adapter: ModelAdapter, output_format: OutputFormat) -> ToolCheck:
    """Raises ChatTemplateMissing and ChatTemplateFailed."""
    faults: list[str] = []
    forms: tuple[NullContent, ...] = ("null", "absent", "empty")
    for null_content in forms:
        call = with_null_content(CALL, null_content)
        try:
            fault = _why_not_shown(tokenizer, adapter, call)
            if fault is None and output_format.name == "plain":
                fault = "the chat template writes tool calls in an unknown format"
            if fault is None:
                return ToolCheck(True, null_content, _why_not_read(tokenizer, adapter, output_format, call))
            faults.append(fault)
        except TEMPLATE_FAILURES as exc:
            faults.append(f"the chat template does not accept tools and tool calls: {type(exc).__name__}: {exc}")
    return ToolCheck(False, fault=faults[-1])


def with_null_content(message: dict[str, Any], form: NullContent) -> dict[str, Any]:
    """The message, with a None content in the given form."""
    if form == "null" or message["content"] is not None:
        return message
    others = {name: value for name, value in message.items() if name != "content"}
    return others if form == "absent" else {**others, "content": ""}


def _why_not_shown(tokenizer: Tokenizer, adapter: ModelAdapter, call: dict[str, Any]) -> str | None:
    prompt = _render(tokenizer, adapter, [QUESTION], True)
    if TOOL.name not in prompt:
        return "the chat template does not show tools to the model"
    shown = _assistant_text(tokenizer, adapter, call)
    if TOOL.name not in shown or shown.count("None") > prompt.count("None"):
        return "the chat template leaves tool calls out of earlier messages"
    if RESULT["content"] not in _render(tokenizer, adapter, [QUESTION, call, RESULT], True):
        return "the chat template leaves the results of tools out"
    return None


def _why_not_read(
    tokenizer: Tokenizer, adapter: ModelAdapter, output_format: OutputFormat, call: dict[str, Any]
) -> str | None:
    prompt = _render(tokenizer, adapter, [QUESTION], True)
    continues = _render(tokenizer, adapter, [QUESTION, call], False).startswith(prompt)
    opened = continues and output_format.opens_reasoning(prompt)
    parser = output_format.make_parser([TOOL], opened_reasoning=opened)
    pieces = parser.feed(_assistant_text(tokenizer, adapter, call)) + parser.flush()
    if _calls(pieces) == [(TOOL.name, ARGUMENTS)]:
        return None
    return f"the {output_format.name!r} parser does not read the tool call that the chat template writes"


def _assistant_text(tokenizer: Tokenizer, adapter: ModelAdapter, call: dict[str, Any]) -> str:
    """The text that the template adds to the question for the assistant's turn."""
    answered = _render(tokenizer, adapter, [QUESTION, call], False)
    prompt = _render(tokenizer, adapter, [QUESTION], True)
    if answered.startswith(prompt):
        return answered.removeprefix(prompt)
    return answered.removeprefix(_render(tokenizer, adapter, [QUESTION], False))


def _render(tokenizer: Tokenizer, adapter: ModelAdapter, messages: list[dict[str, Any]], generation: bool) -> str:
    return adapter.apply_chat_template(tokenizer, messages, add_generation_prompt=generation, tools=[OPENAI_TOOL])


def _calls(pieces: list[Piece]) -> list[tuple[str, Any]]:
    """The complete calls among `pieces`."""
    calls: list[tuple[str, Any]] = []
    name, arguments = "", ""
    for piece in pieces:
        match piece:
            case ToolCallStart(name):
                arguments = ""
            case ToolCallArguments(text):
                arguments += text
            case ToolCallEnd():
                calls.append((name, json.loads(arguments)))
            case _:
                pass
    return calls
