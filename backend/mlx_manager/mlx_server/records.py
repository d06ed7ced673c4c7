"""What happened to a request, written down on its way and read once, when it has ended, by logs, spans and metrics.

Knows none of those three. Times are seconds of `time.perf_counter`, None where the request did not come so far.
"""

import time
from array import array
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class GenerationRecord:
    """One generation: waited for, queued, prefilled, decoded. It goes with its request."""

    began: float = field(default_factory=time.perf_counter)
    model: str = ""
    """The id of the model that answers: the one asked for, or one that stands in for it; "" before one is found."""
    upstream: str | None = None
    """The name of the upstream server that has it."""
    load_seconds: float | None = None
    """How long the request waited for its model to be loaded, where it had to."""
    admitted: float | None = None
    """To the engine's queue."""
    queue_seconds: float | None = None
    """From there to the first chunk of its prompt."""
    prefilled: float | None = None
    first_output: float | None = None
    last_output: float | None = None
    output_gaps: "array[float]" = field(default_factory=lambda: array("d"))
    """Seconds between the deltas of a choice, all choices together."""
    ended: float | None = None

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    tool_calls: list[str] = field(default_factory=list)
    """Names of the tools called."""
    broken_calls: int = 0
    """Calls that could not be read, and are text."""

    error: Exception | None = None
    client_left: bool = False


@dataclass(slots=True, eq=False)
class Exchange:
    """One HTTP request and its answer."""

    request_id: str
    method: str
    path: str
    began: float = field(default_factory=time.perf_counter)
    endpoint: str = "other"
    """The route's path, such as `/v1/models/{model_id}`: one of a bounded number."""
    key_name: str | None = None
    """Of the API key that it came with."""
    status: int | None = None
    """Of the answer, once its headers are sent."""
    generation: GenerationRecord | None = None
    """What the request generates, if it does."""
