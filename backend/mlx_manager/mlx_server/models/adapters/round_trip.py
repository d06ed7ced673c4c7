"""A check at load: a tool call, rendered by the model's own template, must be what the parser reads from it."""

import json
from typing import Any

from jinja2 import TemplateError

from mlx_manager.mlx_server.errors import ChatTemplateFailed, ChatTemplateMissing
from mlx_manager.mlx_server.models.adapters.base import ModelAdapter
from mlx_manager.mlx_server.models.tokenization import Tokenizer
from mlx_manager.mlx_server.parsers.formats import OutputFormat
from mlx_manager.mlx_server.parsers.pieces import Piece, Tool, ToolCallArguments, ToolCallEnd, ToolCallStart

TOOL = Tool(
    "look_up_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
)
ARGUMENTS = {"city": 'São "Paulo"', "days": 3}

_QUESTION = {"role": "user", "content": "How is the weather?"}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abcdef123",
            "type": "function",
            "function": {"name": TOOL.name, "arguments": json.dumps(ARGUMENTS, ensure_ascii=False)},
        }
    ],
}
_OPENAI_TOOL = {
    "type": "function",
    "function": {"name": TOOL.name, "description": "The weather of the next days.", "parameters": TOOL.parameters},
}


def check_round_trip(tokenizer: Tokenizer, adapter: ModelAdapter, output_format: OutputFormat) -> str | None:
    """What is wrong with tool calls of this model, for a warning; None when nothing is, or when it cannot chat."""
    try:
        prompt = _render(tokenizer, adapter, [_QUESTION], True)
        unanswered = _render(tokenizer, adapter, [_QUESTION], False)
        answered = _render(tokenizer, adapter, [_QUESTION, _CALL], False)
    except ChatTemplateMissing:
        return None
    except ChatTemplateFailed as exc:
        return exc.message
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        return f"the chat template does not take tools and tool calls: {type(exc).__name__}: {exc}"
    if TOOL.name not in prompt:
        return "the chat template does not show tools to the model"
    if TOOL.name not in answered.removeprefix(prompt).removeprefix(unanswered):
        return "the chat template leaves tool calls out of the messages before"
    continues = answered.startswith(prompt)
    opened = continues and output_format.opens_reasoning(prompt)
    parser = output_format.make_parser([TOOL], opened_reasoning=opened)
    pieces = parser.feed(answered.removeprefix(prompt if continues else unanswered)) + parser.flush()
    if _calls(pieces) == [(TOOL.name, ARGUMENTS)]:
        return None
    return f"a tool call that the chat template writes is not one that the {output_format.name!r} parser reads"


def _render(tokenizer: Tokenizer, adapter: ModelAdapter, messages: list[dict[str, Any]], generation: bool) -> str:
    return adapter.apply_chat_template(tokenizer, messages, add_generation_prompt=generation, tools=[_OPENAI_TOOL])


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
