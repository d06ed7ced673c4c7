"""The process that renders chat templates. A template that exhausts time, memory or stack ends only this process.

Run as `python -m mlx_manager.mlx_server.templates.renderer`. A request is JSON with the arguments of
`environment.render`, a zero byte, and the template. The reply is `TEXT` and the prompt, or `FAILURE` and JSON with the
exception's name and message. `python_template` in a request names a template of mlx-lm instead.
"""

import json

from mlx_manager.mlx_server.isolation.answering import answer_questions
from mlx_manager.mlx_server.templates import environment, python_templates

CPU_SECONDS = 2.0
MEMORY_BYTES = 2**30
TEXT, FAILURE = b"t", b"f"
MAX_REASON_CHARACTERS = 1000


def main() -> None:
    answer_questions(_answer, cpu_seconds=CPU_SECONDS, memory_bytes=MEMORY_BYTES)


def _answer(question: bytes) -> bytes:
    encoded, _, template = question.partition(b"\0")
    try:
        arguments = json.loads(encoded)
        python_template = arguments.pop("python_template", None)
        if python_template is not None:
            text = python_templates.render(python_template, **arguments)
        else:
            text = environment.render(template.decode(), **arguments)
        return TEXT + text.encode()  # raises for a lone surrogate, such as in a tool's schema
    except MemoryError:
        raise
    except Exception as exc:  # a template may raise anything
        failure = [type(exc).__name__, str(exc)[:MAX_REASON_CHARACTERS]]
        return FAILURE + json.dumps(failure).encode()


if __name__ == "__main__":
    main()
