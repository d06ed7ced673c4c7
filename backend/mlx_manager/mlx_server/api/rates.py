"""Limits requests and tokens per minute, per API key or per client address. Knows neither settings nor routes.

A request is charged on arrival, its tokens at its end, when they are known; a client that overdraws its tokens waits
until the balance is positive again. The headers and errors are OpenAI's, and OpenAI clients wait accordingly.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from starlette.types import Message, Scope, Send

from mlx_manager.mlx_server.api.scopes import path_of, protocols_of
from mlx_manager.mlx_server.errors import RequestRateExceeded, TokenRateExceeded
from mlx_manager.mlx_server.records import Exchange

MAX_BUCKETS = 10_000
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Limits per minute; 0 means no limit."""

    requests: int = 0
    tokens: int = 0


class Rates:
    """The buckets of all keys. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = Buckets(clock)
        self._tokens = Buckets(clock)

    def of(self, limits: RateLimits, scope: Scope) -> "Rate | None":
        """The rate of a POST to an endpoint of a protocol; None for any other request, which is not limited."""
        if not (limits.requests or limits.tokens) or scope["method"] != "POST":
            return None
        if protocols_of(scope).at(path_of(scope)) is None:
            return None
        return Rate(self._requests, self._tokens, limits, scope["state"]["exchange"], _address(scope))


class Rate:
    """Charges one request to its key."""

    def __init__(
        self, requests: "Buckets", tokens: "Buckets", limits: RateLimits, exchange: Exchange, address: str
    ) -> None:
        self._requests = requests
        self._tokens = tokens
        self._limits = limits
        self._exchange = exchange
        self._name = exchange.key_name if exchange.key_name is not None else address

    def charge(self) -> None:
        """Raises TokenRateExceeded or RequestRateExceeded without charging."""
        if self._limits.tokens:
            balance = self._tokens.balance(self._name, self._limits.tokens)
            if balance.wait_seconds > 0:
                raise TokenRateExceeded(_message("tokens", balance), retry_after_seconds=_whole(balance.wait_seconds))
        if self._limits.requests:
            balance = self._requests.balance(self._name, self._limits.requests)
            if balance.wait_seconds > 0:
                wait_seconds = _whole(balance.wait_seconds)
                raise RequestRateExceeded(_message("requests", balance), retry_after_seconds=wait_seconds)
            self._requests.take(self._name, 1, self._limits.requests)

    def charge_tokens(self) -> None:
        """Called when the answer has ended, or the client has disconnected."""
        record = self._exchange.generation
        if self._limits.tokens and record is not None:
            self._tokens.take(self._name, record.prompt_tokens + record.completion_tokens, self._limits.tokens)

    def adding_headers(self, send: Send) -> Send:
        """`send` that adds the rate headers. Not a coroutine, because it is called for each chunk."""

        def sending(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers()]
            return send(message)

        return sending

    def _headers(self) -> Iterator[tuple[bytes, bytes]]:
        if self._limits.requests:
            yield from _headers_of("requests", self._requests.balance(self._name, self._limits.requests))
        if self._limits.tokens:
            yield from _headers_of("tokens", self._tokens.balance(self._name, self._limits.tokens))


@dataclass(slots=True)
class _Level:
    amount: float
    at: float


@dataclass(frozen=True, slots=True)
class Balance:
    limit: int
    remaining: int
    reset_seconds: float
    """Seconds until the bucket is full again."""
    wait_seconds: float
    """Seconds until the next request is allowed; 0 if it is now."""


class Buckets:
    """A token bucket per name, refilled evenly. The least recently used names are dropped."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._levels: OrderedDict[str, _Level] = OrderedDict()

    def take(self, name: str, amount: float, limit: int) -> None:
        """Takes `amount` even if the bucket holds less: its level becomes negative."""
        level = self._filled(name, limit)
        level.amount -= amount

    def balance(self, name: str, limit: int) -> Balance:
        amount = self._filled(name, limit).amount
        per_second = limit / SECONDS
        wait_seconds = max(0.0, (1 - amount) / per_second)
        return Balance(limit, max(0, int(amount)), (limit - amount) / per_second, wait_seconds)

    def _filled(self, name: str, limit: int) -> _Level:
        """The level refilled up to now, at the current limit."""
        now = self._clock()
        level = self._levels.get(name)
        if level is None:
            level = self._levels[name] = _Level(limit, now)
            if len(self._levels) > MAX_BUCKETS:
                self._levels.popitem(last=False)
        self._levels.move_to_end(name)
        level.amount = min(limit, level.amount + (now - level.at) * limit / SECONDS)
        level.at = now
        return level


def duration(seconds: float) -> str:
    """Formats seconds as Go and OpenAI's headers do: `6m0s`, `1.5s`, `20ms`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(round(seconds, 3), 60)
    hours, minutes = divmod(int(minutes), 60)
    written = f"{round(rest, 3):g}s"
    return f"{hours}h{minutes}m{written}" if hours else f"{minutes}m{written}" if minutes else written


def _headers_of(what: str, balance: Balance) -> Iterator[tuple[bytes, bytes]]:
    yield f"x-ratelimit-limit-{what}".encode(), str(balance.limit).encode()
    yield f"x-ratelimit-remaining-{what}".encode(), str(balance.remaining).encode()
    yield f"x-ratelimit-reset-{what}".encode(), duration(balance.reset_seconds).encode()


def _message(what: str, balance: Balance) -> str:
    wait = duration(balance.wait_seconds)
    return f"Rate limit reached: {balance.limit} {what} per minute for each key. Retry in {wait}."


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client is not None else ""
