"""The loop inside an isolated process: answers one request after another within limits on time and memory.

Imports only the standard library, so that a process starts in a tenth of a second.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable

LENGTH_BYTES = 4
OUT_OF_MEMORY = 3
"""The exit status after the memory limit. SIGPROF ends a process at its time limit."""


def answer_questions(
    answer: Callable[[bytes], bytes], *, cpu_seconds: float, memory_bytes: int, niceness: int = 0
) -> None:
    """Answers requests on the socket at file descriptor 0 until the other end closes it."""
    os.nice(niceness)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS does not enforce it
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with open(0, "wb", closefd=False) as answers:
        while len(length := sys.stdin.buffer.read(LENGTH_BYTES)) == LENGTH_BYTES:
            question = sys.stdin.buffer.read(int.from_bytes(length, "big"))
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            try:
                reply = answer(question)
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.write(len(reply).to_bytes(LENGTH_BYTES, "big") + reply)
            answers.flush()
