"""Requests and tokens per minute, for each key, or each client's address where there are no keys.

A request is charged when it comes, and its tokens when it has ended, because they are not known before: a client that
has used more than there was waits until that is made up for. The headers and errors are OpenAI's, and its clients wait
as they say.
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
    """Of each minute; 0 for no limit."""

    requests: int = 0
    tokens: int = 0


class Rates:
    """What every key has used. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = Buckets(clock)
        self._tokens = Buckets(clock)

    def of(self, limits: RateLimits, scope: Scope) -> "Rate | None":
        """None for a request that counts for nothing: only those that a protocol reads count."""
        if not (limits.requests or limits.tokens) or scope["method"] != "POST":
            return None
        if protocols_of(scope).at(path_of(scope)) is None:
            return None
        return Rate(self._requests, self._tokens, limits, scope["state"]["exchange"], _address(scope))


class Rate:
    """One request's part in the rates."""

    def __init__(
        self, requests: "Buckets", tokens: "Buckets", limits: RateLimits, exchange: Exchange, address: str
    ) -> None:
        self._requests = requests
        self._tokens = tokens
        self._limits = limits
        self._exchange = exchange
        self._name = exchange.key_name if exchange.key_name is not None else address

    def charge(self) -> None:
        """Raises TokenRateExceeded and RequestRateExceeded, and charges nothing then."""
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
        """When the answer has ended; those of clients that left, too."""
        record = self._exchange.generation
        if self._limits.tokens and record is not None:
            self._tokens.take(self._name, record.prompt_tokens + record.completion_tokens, self._limits.tokens)

    def noting(self, send: Send) -> Send:
        """`send`, with the headers of the rates. No coroutine of its own: it is called for each chunk."""

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
    """Until it is full again."""
    wait_seconds: float
    """Until something may be taken; 0 where that is now."""


class Buckets:
    """A token bucket for each name, which fills up evenly; the names not heard of for longest are forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._levels: OrderedDict[str, _Level] = OrderedDict()

    def take(self, name: str, amount: float, limit: int) -> None:
        """However much there is: what has been used can only be noted, and the bucket owes it then."""
        level = self._filled(name, limit)
        level.amount -= amount

    def balance(self, name: str, limit: int) -> Balance:
        amount = self._filled(name, limit).amount
        per_second = limit / SECONDS
        wait_seconds = max(0.0, (1 - amount) / per_second)
        return Balance(limit, max(0, int(amount)), (limit - amount) / per_second, wait_seconds)

    def _filled(self, name: str, limit: int) -> _Level:
        """The level as it is now. A limit that has changed counts from here on."""
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
    """As Go writes one, and OpenAI's headers do: `6m0s`, `1.5s`, `20ms`."""
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
    return f"Rate limit reached: {balance.limit} {what} per minute for each key. Try again in {wait}."


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client is not None else ""
