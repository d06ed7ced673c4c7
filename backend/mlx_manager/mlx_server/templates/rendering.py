"""Chat templates rendered in processes of their own. Blocks: for threads.

A template is a program of whoever made the model. Jinja's sandbox keeps it from running code, but not from looping for
ever or filling the memory, and a thread that does so cannot be ended.
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
"""The process ends itself after two seconds of CPU time; this is for one that got none."""
MAX_PROMPT_BYTES = 2**26
_FAILURES: dict[FailureCause, str] = {
    "time": f"takes more than {CPU_SECONDS:g} seconds of computing",
    "memory": f"takes more than {MEMORY_BYTES // 2**20} MB of memory",
    "size": f"writes a prompt of more than {MAX_PROMPT_BYTES // 2**20} MB",
    "crash": "breaks the process that renders it",
}


class TemplateRenderer:
    """`render(template, messages, ...)` gives the prompt's text, and `close` ends the processes."""

    def __init__(self) -> None:
        self._processes = ProcessPool(
            "mlx_manager.mlx_server.templates.renderer",
            max_idle=MAX_IDLE,
            answer_seconds=ANSWER_SECONDS,
            max_answer_bytes=MAX_PROMPT_BYTES,
        )

    def render(self, template: str, messages: list[dict[str, Any]], **arguments: Any) -> str:
        """`arguments` are those of `environment.render`, and `python_template` for one of mlx-lm's by its name.

        Raises ChatTemplateFailed for a template that takes too much, TypeError where it raises one, TemplateSyntaxError
        for one that is no template, and TemplateError for all else that goes wrong in it.
        """
        try:
            question = json.dumps({"messages": messages, **arguments}, default=_plain)
        except RecursionError as exc:
            raise ValueError("they are nested too deeply") from exc
        try:
            answer = self._processes.ask(question.encode() + b"\0" + template.encode())
        except ProcessFailed as exc:
            raise ChatTemplateFailed(
                f"The model's chat template {_FAILURES[exc.cause]}. Send fewer or shorter messages; if it does so "
                "with short ones too, the model is broken or means harm.",
                param="messages",
            ) from exc
        if answer.startswith(FAILURE):
            raise _failure(*json.loads(answer.removeprefix(FAILURE)))
        return answer.removeprefix(TEXT).decode()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What `work` gives, which may render."""
        return await self._processes.in_thread(work)

    def close(self) -> None:
        self._processes.close()


def _failure(name: str, message: str) -> Exception:
    if name == "TypeError":
        return TypeError(message)
    if name in ("TemplateSyntaxError", "TemplateAssertionError"):
        error = TemplateSyntaxError(message, lineno=0)
        error.translated = True  # the message names the line already
        return error
    return TemplateError(message)


def _plain(value: object) -> object:
    """What templates may see of an object that is no JSON: nothing that it can do."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return f"<{type(value).__name__}>"
