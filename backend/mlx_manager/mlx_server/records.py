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
    began_ns: int = field(default_factory=time.time_ns)
    """The same moment as Unix time. All other times are told from it, so that no two clocks are compared."""
    streamed: bool = False
    model: str = ""
    """The id of the model that answers: the one asked for, or one that stands in for it; "" before one is found."""
    upstream: str | None = None
    """The name of the upstream server that has it."""
    leased: float | None = None
    """When the model was there."""
    load_seconds: float | None = None
    """How long the request waited for it to be loaded, where it had to."""
    admitted: float | None = None
    """To the engine's queue."""
    queue_seconds: float = 0.0
    """From there to the first chunk of its prompt; known when it is prefilled."""
    prefilled: float | None = None
    first_output: float | None = None
    last_output: float | None = None
    output_gaps: "array[float]" = field(default_factory=lambda: array("d"))
    """Seconds between the deltas of a choice, all choices together."""
    ended: float | None = None

    prompt_tokens: int = 0
    cached_tokens: int = 0
    stored_tokens: int = 0
    """Of the prompt, that the prefix cache keeps from this request on."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    warnings: list[str] = field(default_factory=list)
    """What of the request has no effect, in sentences of ASCII, for the client to read."""
    ignored_items: int = 0
    """Items of the input that say nothing to a model here."""
    finish_reasons: list[str] = field(default_factory=list)
    tool_calls: list[str] = field(default_factory=list)
    """Names of the tools called."""
    broken_calls: int = 0
    """Calls that could not be read, and are text."""

    error: Exception | None = None
    client_left: bool = False

    def unix_ns(self, moment: float) -> int:
        """Unix time in nanoseconds of a `moment` of this record."""
        return self.began_ns + int((moment - self.began) * 1e9)

    @property
    def time_to_first_output(self) -> float | None:
        return self.first_output - self.began if self.first_output is not None else None

    @property
    def seconds_per_token(self) -> float | None:
        """Between the first output and the last, for an answer of several tokens."""
        if self.first_output is None or self.last_output is None or self.completion_tokens < 2:
            return None
        return (self.last_output - self.first_output) / (self.completion_tokens - 1)

    @property
    def tokens_per_second(self) -> float | None:
        return 1 / self.seconds_per_token if self.seconds_per_token else None


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
    """Of the answer, once its headers are sent; 499 when the client left before its end."""
    generation: GenerationRecord | None = None
    """What the request generates, if it does."""
    response_id: str | None = None
    """Of what it generates, as the client reads it."""
    error: BaseException | None = None
    """What it was refused with, or what reached the top."""
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self.ended if self.ended is not None else time.perf_counter()) - self.began

    @property
    def failure(self) -> BaseException | None:
        if self.error is None and self.generation is not None:
            return self.generation.error
        return self.error

    @property
    def refused(self) -> bool:
        """Whether the fault is the client's."""
        return self.status is not None and 400 <= self.status < 500
