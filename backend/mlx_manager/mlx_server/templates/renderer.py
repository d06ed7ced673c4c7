"""The process that renders chat templates: what exhausts its time, memory or stack ends it, and nothing else.

Run as `python -m mlx_manager.mlx_server.templates.renderer`. A question is JSON with the arguments of
`environment.render`, a zero byte, and the template; the answer is `TEXT` and the prompt, or `FAILURE` and JSON of the
exception's name and message. A question with a `python_template` names one of mlx-lm's in place of the template.
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
        return TEXT + text.encode()  # half a character in a tool's schema, say, is an error here
    except MemoryError:
        raise
    except Exception as exc:  # a template may raise anything
        failure = [type(exc).__name__, str(exc)[:MAX_REASON_CHARACTERS]]
        return FAILURE + json.dumps(failure).encode()


if __name__ == "__main__":
    main()
