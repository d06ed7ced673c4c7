"""Renders chat templates like transformers: same sandbox, filters and functions. Runs in the rendering process.

Prepares arguments like transformers' `render_jinja_template`, so that both give the same text. One difference: a
message's content may be None here, because DeepSeek's templates detect tool calls by it.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Message = dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names that templates use for a message's reasoning."""
END_OF_CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "
MAX_COMPILED = 16


def render(
    template: str,
    messages: list[Message],
    *,
    tools: list[dict[str, Any]] | None,
    documents: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
    continue_final_message: bool | str,
    variables: dict[str, Any],
) -> str:
    """The text of the prompt. Raises ValueError, and any exception that the template causes in Jinja or Python."""
    if not messages:
        raise ValueError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    if continue_final_message and add_generation_prompt:
        raise ValueError("continue_final_message and add_generation_prompt are not compatible. Set only one of them.")
    compiled = _compiled(template)
    chat = [
        _with_reasoning({key: value for key, value in message.items() if value is not None or key == "content"})
        for message in messages
    ]
    field = continue_final_message if isinstance(continue_final_message, str) else "content"
    continued = _mark_end(chat[-1], field, template) if continue_final_message else None
    text = compiled.render(
        messages=chat, tools=tools, documents=documents, add_generation_prompt=add_generation_prompt, **variables
    )
    return text if continued is None else _cut_at_mark(text, continued)


def _with_reasoning(message: Message) -> Message:
    """The reasoning under all names that templates read: mostly `reasoning_content`, in gpt-oss `thinking`."""
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark_end(message: Message, field: str, template: str) -> str:
    """Marks the end of the text of `field`, and returns that text."""
    text = message.get(field)
    if text is None:
        raise ValueError(f'continue_final_message is set but the final message has no "{field}" to continue!')
    names = [name for name in REASONING_FIELDS if message.get(name) == text] if field in REASONING_FIELDS else [field]
    if not any(name in template for name in names):
        raise ValueError(
            f'continue_final_message is set to "{field}" but this is not an accepted field in the chat_template'
        )
    if isinstance(text, list):
        return _mark_last_part(text)
    for name in names:
        message[name] += END_OF_CONTINUED
    return str(text)


def _mark_last_part(parts: list[Any]) -> str:
    for part in reversed(parts):
        if "text" in part:
            text: str = part["text"]
            part["text"] += END_OF_CONTINUED
            return text
    raise ValueError("continue_final_message is set but we could not find any text to continue in the final message!")


def _cut_at_mark(text: str, continued: str) -> str:
    if continued.strip() not in text or END_OF_CONTINUED.strip() not in text:
        raise ValueError(
            "continue_final_message is set but the final message does not appear in the chat after applying the chat "
            "template! This can happen if the chat template deletes portions of the final message."
        )
    end = text.rindex(END_OF_CONTINUED.strip())
    keeps_spaces = text[end : end + len(END_OF_CONTINUED)] == END_OF_CONTINUED
    return text[:end] if keeps_spaces else text[:end].rstrip()


@lru_cache(MAX_COMPILED)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment.from_string(template)


class _GenerationTag(Extension):
    """`{% generation %}` marks the model's text for training code. Here it has no effect."""

    tags = {"generation"}  # noqa: RUF012  as Jinja's own extensions have it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` as a function, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """Rejects attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be one of the attributes
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"Chat templates cannot store underscore-prefixed attributes on a namespace, but got {name!r}. "
            "Please rename the attribute."
        )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
