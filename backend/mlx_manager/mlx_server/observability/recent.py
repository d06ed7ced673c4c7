"""The last completed requests, for `GET /admin/live`. Keeps numbers and names only, never content."""

import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from mlx_manager.mlx_server.records import Exchange, GenerationRecord

MAX_REQUESTS = 200
_ADMIN = "/admin/"


@dataclass(frozen=True, slots=True)
class RecentRequest:
    """`number` counts the requests since the start. None for what a request did not reach."""

    number: int
    ended_at: float
    """Unix seconds."""
    path: str
    status: int | None
    seconds: float
    request_id: str
    model: str | None = None
    key: str | None = None
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    time_to_first_token: float | None = None
    queue_seconds: float | None = None
    load_seconds: float | None = None
    tokens_per_second: float | None = None
    finish_reason: str | None = None
    cache_miss: str | None = None
    missed_tokens: int = 0
    trace_id: str | None = None


class RecentRequests:
    """A ring of the POST requests that ended last. Used on the event loop."""

    def __init__(self, size: int = MAX_REQUESTS) -> None:
        self._requests: deque[RecentRequest] = deque(maxlen=size)
        self._count = 0

    def exchange_ended(self, exchange: Exchange) -> None:
        if exchange.method != "POST" or exchange.path.startswith(_ADMIN):
            return
        self._count += 1
        failure, generation = exchange.failure, exchange.generation
        request = RecentRequest(
            number=self._count,
            ended_at=time.time(),
            path=exchange.path,
            status=exchange.status,
            seconds=exchange.seconds,
            request_id=exchange.request_id,
            key=exchange.key_name,
            error=type(failure).__name__ if failure is not None else None,
            trace_id=exchange.trace_id,
        )
        self._requests.append(request if generation is None else replace(request, **_numbers(generation)))

    def since(self, number: int) -> list[RecentRequest]:
        """The kept requests after the one with that number, oldest first."""
        return [request for request in self._requests if request.number > number]


def _numbers(generation: GenerationRecord) -> dict[str, Any]:
    return {
        "model": generation.model or None,
        "prompt_tokens": generation.prompt_tokens,
        "cached_tokens": generation.cached_tokens,
        "completion_tokens": generation.completion_tokens,
        "time_to_first_token": generation.time_to_first_output,
        "queue_seconds": generation.queue_seconds if generation.prefilled is not None else None,
        "load_seconds": generation.load_seconds,
        "tokens_per_second": generation.tokens_per_second,
        "cache_miss": generation.miss.reason if generation.miss is not None else None,
        "missed_tokens": generation.miss.missed_tokens if generation.miss is not None else 0,
        "finish_reason": ",".join(dict.fromkeys(generation.finish_reasons)) or None,
    }
