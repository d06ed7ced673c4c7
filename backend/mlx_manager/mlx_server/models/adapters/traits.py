"""Probes which chats a model's template accepts, by rendering short chats when the model is loaded.

A template that raises, omits a message, or moves it does not accept the chat.
"""

from dataclasses import dataclass, replace
from typing import Any

from mlx_manager.mlx_server.errors import ChatTemplateFailed, ChatTemplateMissing
from mlx_manager.mlx_server.models.adapters.base import TEMPLATE_FAILURES, ModelAdapter
from mlx_manager.mlx_server.models.adapters.round_trip import (
    CALL,
    OPENAI_TOOL,
    QUESTION,
    RESULT,
    NullContent,
    check_tools,
    with_null_content,
)
from mlx_manager.mlx_server.models.tokenization import Tokenizer
from mlx_manager.mlx_server.parsers.formats import OutputFormat

Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateTraits:
    """The defaults are the traits of a template that accepts every chat.

    With `native_tools` the template renders tools, calls and results itself. `null_content` is the form that it accepts
    for the content of a message with calls and no text.
    """

    native_tools: bool = True
    null_content: NullContent = "null"
    system: bool = True
    only_system: bool = True
    """Whether a chat may consist of a system message only."""
    several_systems: bool = True
    """Whether a chat may begin with several system messages."""
    late_systems: bool = True
    """Whether a system message may follow other messages."""
    user_runs: bool = True
    """Whether one user message may follow another."""
    assistant_runs: bool = True
    assistant_first: bool = True
    """Whether an assistant message may come first."""
    user_after_result: bool = True
    """Whether a user message may follow a tool's result."""


def probe_template(
    tokenizer: Tokenizer, adapter: ModelAdapter, output_format: OutputFormat
) -> tuple[TemplateTraits, str | None]:
    """The traits, and the fault in the template's tool calls, if any."""
    try:
        if not _Probe(tokenizer, adapter).shows([_ask(1)]):
            return TemplateTraits(), "the chat template does not render a single question"
        tools = check_tools(tokenizer, adapter, output_format)
        traits = replace(
            _probe_roles(_Probe(tokenizer, adapter)), native_tools=tools.native, null_content=tools.null_content
        )
        if traits.native_tools:
            call = with_null_content(CALL, tools.null_content)
            probe = _Probe(tokenizer, adapter, {"tools": [OPENAI_TOOL]})
            traits = replace(traits, user_after_result=probe.shows([QUESTION, call, RESULT, _ask(2)]))
        return traits, tools.fault
    except ChatTemplateMissing:
        return TemplateTraits(), None
    except ChatTemplateFailed as exc:
        return TemplateTraits(), exc.message


def _probe_roles(probe: "_Probe") -> TemplateTraits:
    system = probe.shows([_rule(1), _ask(1)], in_order=False)
    late = (
        [_ask(1), _answer(1), _rule(1), _ask(2)],
        [_rule(1), _ask(1), _rule(2), _answer(1), _ask(2)],
        [_rule(1), _ask(1), _answer(1), _rule(2), _ask(2)],
        [_rule(1), _ask(1), _answer(1), _ask(2), _rule(2)],
    )
    return TemplateTraits(
        system=system,
        only_system=system and probe.shows([_rule(1)]),
        several_systems=system and probe.shows([_rule(1), _rule(2), _rule(3), _ask(1)]),
        late_systems=system and all(map(probe.shows, late)),
        user_runs=probe.shows([_ask(1), _ask(2), _answer(1), _ask(3), _ask(4)]),
        assistant_runs=probe.shows([_ask(1), _answer(1), _answer(2), _ask(2)]),
        assistant_first=probe.shows([_answer(1), _ask(1)]),
    )


class _Probe:
    """Renders probe chats. Raises ChatTemplateFailed and ChatTemplateMissing; other failures mean "not accepted"."""

    def __init__(self, tokenizer: Tokenizer, adapter: ModelAdapter, options: dict[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._adapter = adapter
        self._options = options if options is not None else {}

    def shows(self, messages: list[Message], in_order: bool = True) -> bool:
        """Whether the prompt contains the content of all messages, in order."""
        try:
            prompt = self._adapter.apply_chat_template(self._tokenizer, messages, **self._options)
        except TEMPLATE_FAILURES:
            return False
        place = 0
        for text in (message["content"] for message in messages if message.get("content")):
            place = prompt.find(text, place if in_order else 0)
            if place < 0:
                return False
            place += len(text)
        return True


def _rule(number: int) -> Message:
    return {"role": "system", "content": f"Keep rule r{number}x."}


def _ask(number: int) -> Message:
    return {"role": "user", "content": f"What is q{number}x?"}


def _answer(number: int) -> Message:
    return {"role": "assistant", "content": f"It is a{number}x."}
