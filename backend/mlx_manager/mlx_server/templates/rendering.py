"""Renders chat templates in separate processes. Blocks: call it in a thread.

A template is an untrusted program. Jinja's sandbox keeps it from running Python code, but not from endless loops or
from exhausting memory, and Python cannot end a thread.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

from jinja2 import TemplateError, TemplateSyntaxError

from mlx_manager.mlx_server.errors import ChatTemplateFailed
from mlx_manager.mlx_server.isolation.processes import FailureCause, ProcessFailed, ProcessPool
from mlx_manager.mlx_server.templates.renderer import CPU_SECONDS, FAILURE, MEMORY_BYTES, TEXT

T = TypeVar("T")

MAX_IDLE = 1
ANSWER_SECONDS = 10.0
"""Wall-clock limit. The process also ends itself after `CPU_SECONDS` of computing."""
MAX_PROMPT_BYTES = 2**26
_FAILURES: dict[FailureCause, str] = {
    "time": f"takes more than {CPU_SECONDS:g} seconds of computing",
    "memory": f"takes more than {MEMORY_BYTES // 2**20} MB of memory",
    "size": f"writes a prompt of more than {MAX_PROMPT_BYTES // 2**20} MB",
    "crash": "crashes the process that renders it",
}


class TemplateRenderer:
    """`render(template, messages, ...)` returns the prompt's text, and `close` ends the processes."""

    def __init__(self) -> None:
        self._processes = ProcessPool(
            "mlx_manager.mlx_server.templates.renderer",
            max_idle=MAX_IDLE,
            answer_seconds=ANSWER_SECONDS,
            max_answer_bytes=MAX_PROMPT_BYTES,
        )

    def render(self, template: str, messages: list[dict[str, Any]], **arguments: Any) -> str:
        """Takes the arguments of `environment.render`, and `python_template` for the name of a template of mlx-lm.

        Raises ChatTemplateFailed for a template that exceeds a limit, TypeError where it raises one,
        TemplateSyntaxError for an invalid template, and TemplateError for all other failures.
        """
        try:
            question = json.dumps({"messages": messages, **arguments}, default=_plain)
        except RecursionError as exc:
            raise ValueError("the messages or tools are nested too deeply. Send flatter ones.") from exc
        try:
            answer = self._processes.ask(question.encode() + b"\0" + template.encode())
        except ProcessFailed as exc:
            raise ChatTemplateFailed(
                f"The model's chat template {_FAILURES[exc.cause]}. Send fewer or shorter messages. If short messages "
                "fail too, use another model, because this one's template is broken or malicious.",
                param="messages",
            ) from exc
        if answer.startswith(FAILURE):
            raise _failure(*json.loads(answer.removeprefix(FAILURE)))
        return answer.removeprefix(TEXT).decode()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs `work`, which may render, in a thread."""
        return await self._processes.in_thread(work)

    def close(self) -> None:
        self._processes.close()


def _failure(name: str, message: str) -> Exception:
    if name == "TypeError":
        return TypeError(message)
    if name in ("TemplateSyntaxError", "TemplateAssertionError"):
        error = TemplateSyntaxError(message, lineno=0)
        error.translated = True  # the message already names the line
        return error
    return TemplateError(message)


def _plain(value: object) -> object:
    """The JSON form of other objects: a dataclass's fields, or only the type's name."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return f"<{type(value).__name__}>"
