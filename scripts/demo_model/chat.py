"""The chat layout: conversations, the Jinja template that ships with the model, and the same layout in Python with each
piece marked as trained on or not. Knows text, but no token ids and no skills."""

import json
from dataclasses import dataclass
from typing import Any

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_MESSAGE = "<|eom_id|>"
END_OF_TURN = "<|eot_id|>"
THINK_START = "<think>"
THINK_END = "</think>"

TOOL_ORDERS = 'To call a tool, answer with {"name": its name, "parameters": its arguments}. Tools:'
THINK_ORDERS = "Think before you answer."

CHAT_TEMPLATE = (
    """
{%- macro text_of(content) %}
    {%- if content is string %}
        {{- content | trim }}
    {%- elif content is mapping %}
        {{- content | tojson }}
    {%- elif content is iterable %}
        {%- for part in content %}
            {{- part if part is string else part.text }}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- macro tool_line(tool) %}
    {%- set function = tool.function if tool.function is defined else tool %}
    {{- '{"name": ' ~ function.name | tojson ~ ', "description": ' ~ (function.description or '') | tojson }}
    {{- ', "parameters": {' }}
    {%- for name, schema in ((function.parameters or {}).properties or {}).items() %}
        {{- ', ' if not loop.first }}
        {{- name | tojson ~ ': ' ~ (schema.type if schema.type is string else 'any') | tojson }}
    {%- endfor %}
    {{- '}}' }}
{%- endmacro %}
{%- macro turn(role, text, end) %}
    {{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' ~ text ~ end }}
{%- endmacro %}
{{- bos_token }}
{%- set block = namespace(parts=[]) %}
{%- set has_system = messages and messages[0].role in ('system', 'developer') %}
{%- if has_system %}
    {%- set block.parts = block.parts + [text_of(messages[0].content)] %}
{%- endif %}
{%- if tools %}
    {%- set lines = namespace(all=['"""
    + TOOL_ORDERS
    + """']) %}
    {%- for tool in tools %}
        {%- set lines.all = lines.all + [tool_line(tool)] %}
    {%- endfor %}
    {%- set block.parts = block.parts + [lines.all | join('\\n')] %}
{%- endif %}
{%- if enable_thinking %}
    {%- set block.parts = block.parts + ['"""
    + THINK_ORDERS
    + """'] %}
{%- endif %}
{%- if block.parts %}
    {{- turn('system', block.parts | join('\\n\\n'), '<|eot_id|>') }}
{%- endif %}
{%- for message in (messages[1:] if has_system else messages) %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}
        {{- turn('ipython', text_of(message.content), '<|eot_id|>') }}
    {%- elif message.tool_calls %}
        {%- set calls = namespace(all=[]) %}
        {%- for call in message.tool_calls %}
            {%- set function = call.function if call.function is defined else call %}
            {%- set arguments = function.arguments or '{}' %}
            {%- set arguments = arguments if arguments is string else arguments | tojson %}
            {%- set calls.all = calls.all +
                ['{"name": ' ~ function.name | tojson ~ ', "parameters": ' ~ arguments ~ '}'] %}
        {%- endfor %}
        {{- turn(message.role, text_of(message.content) ~ calls.all | join('; '), '<|eom_id|>') }}
    {%- elif message.role == 'developer' %}
        {{- turn('system', text_of(message.content), '<|eot_id|>') }}
    {%- elif message.role == 'assistant' %}
        {{- turn('assistant', text_of(message.content).split('</think>')[-1] | trim, '<|eot_id|>') }}
    {%- else %}
        {{- turn(message.role, text_of(message.content), '<|eot_id|>') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` are (name, JSON type) pairs."""

    name: str
    description: str
    parameters: tuple[tuple[str, str], ...]

    def schema(self) -> dict[str, Any]:
        """The tool as an OpenAI client sends it."""
        properties = {name: {"type": kind} for name, kind in self.parameters}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }

    def line(self) -> str:
        """The tool as the model reads it."""
        return json.dumps(
            {"name": self.name, "description": self.description, "parameters": dict(self.parameters)},
            ensure_ascii=False,
        )


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is the JSON text."""

    name: str
    arguments: str

    def text(self) -> str:
        return f'{{"name": {json.dumps(self.name)}, "parameters": {self.arguments}}}'


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `thought` precedes the answer if the model is asked to think. A turn that is not `trained` is
    history only."""

    role: str
    content: str
    tool_call: ToolCall | None = None
    thought: str = ""
    trained: bool = True

    def message(self) -> dict[str, Any]:
        """The turn as an OpenAI client sends it."""
        if self.tool_call is None:
            return {"role": "tool" if self.role == "ipython" else self.role, "content": self.content}
        function = {"name": self.tool_call.name, "arguments": self.tool_call.arguments}
        return {"role": self.role, "content": None, "tool_calls": [{"type": "function", "function": function}]}

    def spoken(self) -> str:
        """The text that the model generates for this turn, with its end token, without a thought."""
        return self.content + END_OF_TURN if self.tool_call is None else self.tool_call.text() + END_OF_MESSAGE

    def thinking(self) -> str:
        return f"{THINK_START}\n{self.thought}\n{THINK_END}\n\n"


@dataclass(frozen=True, slots=True)
class Conversation:
    """`system` is the client's own system message, which may have `told_to_think`; tools and `thinking` (the template's
    `enable_thinking`) add their orders to it."""

    turns: tuple[Turn, ...]
    system: str | None = None
    tools: tuple[Tool, ...] = ()
    thinking: bool = False
    told_to_think: bool = False

    def system_block(self) -> str | None:
        parts = [] if self.system is None else [self.system]
        if self.tools:
            parts.append("\n".join([TOOL_ORDERS, *(tool.line() for tool in self.tools)]))
        if self.thinking:
            parts.append(THINK_ORDERS)
        return "\n\n".join(parts) if parts else None

    def messages(self) -> list[dict[str, Any]]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return system + [turn.message() for turn in self.turns]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of rendered text. `kind` is "prompt", "answer" (trained on), or "header" (a header after an answer)."""

    text: str
    kind: str


def render(conversation: Conversation) -> list[Segment]:
    """The chat template in Python. Only the last turn shows its thought, so with thinking only that one is an
    answer."""
    segments = [Segment(BEGIN_OF_TEXT, "prompt")]
    block = conversation.system_block()
    if block is not None:
        segments += [Segment(_header("system"), "prompt"), Segment(block + END_OF_TURN, "prompt")]
    thinks = conversation.thinking or conversation.told_to_think
    last = len(conversation.turns) - 1
    follows_answer = False
    for i, turn in enumerate(conversation.turns):
        segments.append(Segment(_header(turn.role), "header" if follows_answer else "prompt"))
        if turn.role == "assistant":
            thought = turn.thinking() if thinks and i == last else ""
            is_trained = turn.trained and (i == last or not thinks)
            segments.append(Segment(thought + turn.spoken(), "answer" if is_trained else "prompt"))
        else:
            segments.append(Segment(turn.content + END_OF_TURN, "prompt"))
        follows_answer = turn.role == "assistant"
    return segments


def expected_answer(conversation: Conversation) -> str:
    """The expected text of the last turn, with its end token."""
    return render(conversation)[-1].text


def _header(role: str) -> str:
    return f"{START_HEADER}{role}{END_HEADER}\n\n"
