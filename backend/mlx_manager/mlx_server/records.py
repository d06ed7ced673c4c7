"""Records of a request: written while it runs, read by logs, spans and metrics at its end. Knows none of those three.

Times are seconds of `time.perf_counter`, None for a phase that the request did not reach.
"""

import time
from array import array
from dataclasses import dataclass, field
from typing import Literal

MissReason = Literal["model", "adapter", "system", "tools", "messages", "evicted", "expired", "first_seen"]


@dataclass(frozen=True, slots=True)
class Miss:
    """Why the prefix cache did not have a prompt, or not all that it had of an earlier one.

    The first `reusable_tokens` of the prompt came from the cache, and the next `missed_tokens` were computed again:
    another `model` or `adapter` had computed them; the `system` prompt, the `tools` or the `messages` changed there;
    the cache had `evicted` them; or they `expired`, because the model was loaded again. A prompt `first_seen` missed
    nothing.
    """

    reason: MissReason
    reusable_tokens: int = 0
    missed_tokens: int = 0
    changed_by: Literal["request", "parameters", "template"] = "request"
    """What changed that part of the prompt: the client's text, other template arguments, or only how the chat template
    renders it."""


@dataclass(slots=True, eq=False)
class GenerationRecord:
    """The phases and counts of one generation. Part of its request."""

    began: float = field(default_factory=time.perf_counter)
    began_ns: int = field(default_factory=time.time_ns)
    """The same moment as Unix time. All other times are relative to it, so that clocks are never mixed."""
    streamed: bool = False
    key_name: str | None = None
    """The name of the request's API key: prompts are compared with those of the same key only."""
    model: str = ""
    """The id of the model that answers: the requested one or its fallback; "" until it is resolved."""
    upstream: str | None = None
    """The name of the upstream that serves the model."""
    leased: float | None = None
    """When the model was loaded."""
    load_seconds: float | None = None
    """How long the request waited for the load."""
    admitted: float | None = None
    """When the engine's queue accepted the request."""
    queue_seconds: float = 0.0
    """From `admitted` to the first prefill chunk; known after prefill."""
    prefilled: float | None = None
    first_output: float | None = None
    last_output: float | None = None
    output_gaps: "array[float]" = field(default_factory=lambda: array("d"))
    """Seconds between the deltas of a choice, for all choices."""
    ended: float | None = None

    prompt_tokens: int = 0
    cached_tokens: int = 0
    stored_tokens: int = 0
    """Prompt tokens that this request added to the prefix cache."""
    miss: Miss | None = None
    """None if nothing was missed, or if it is not known."""
    compared: bool | None = None
    """Whether the earlier answer that the request names was found; None if it names none, or for an upstream."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    warnings: list[str] = field(default_factory=list)
    """ASCII sentences for the client about fields without effect."""
    ignored_items: int = 0
    """Input items that the server skipped."""
    finish_reasons: list[str] = field(default_factory=list)
    tool_calls: list[str] = field(default_factory=list)
    """Names of the tools called."""
    broken_calls: int = 0
    """Tool calls that could not be parsed and were returned as text."""

    error: Exception | None = None
    client_left: bool = False

    def note_lease(self, model_id: str, loaded_at: float, asked_at: float) -> None:
        """The model is ready. Both times are Unix seconds; a load after `asked_at` was a wait of this request."""
        self.model, self.upstream = model_id, None  # an upstream may have failed before
        self.leased = time.perf_counter()
        if loaded_at >= asked_at:
            self.load_seconds = time.time() - asked_at

    def unix_ns(self, moment: float) -> int:
        """Unix time in nanoseconds of a `moment` of this record."""
        return self.began_ns + int((moment - self.began) * 1e9)

    @property
    def time_to_first_output(self) -> float | None:
        return self.first_output - self.began if self.first_output is not None else None

    @property
    def seconds_per_token(self) -> float | None:
        """Mean time per token after the first; None for fewer than two tokens."""
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
    """The route's path, such as `/v1/models/{model_id}`, one of a fixed set."""
    key_name: str | None = None
    """The name of the request's API key."""
    status: int | None = None
    """The status of the answer once its headers are sent; 499 if the client disconnected before its end."""
    generation: GenerationRecord | None = None
    """The generation of the request, if any."""
    response_id: str | None = None
    """The id in the answer's body."""
    trace_id: str | None = None
    """The id of the request's trace, as 32 hex digits, if a collector receives it."""
    error: BaseException | None = None
    """The error that was answered, or the exception that was not handled."""
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
        """Whether the status is a client error."""
        return self.status is not None and 400 <= self.status < 500
