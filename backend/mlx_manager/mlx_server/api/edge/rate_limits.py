"""Requests and tokens per minute, for each key, or each client's address where there are no keys.

A request is charged when it comes, its tokens when it has ended, for nobody knows them before: who has used more than
there was waits until that is made up for. The headers and errors are OpenAI's, and its clients wait as they say.
"""

import math
import time
from collections.abc import Awaitable, Callable, Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_manager.mlx_server.api.edge.buckets import Balance, Buckets
from mlx_manager.mlx_server.api.edge.refusals import refuse
from mlx_manager.mlx_server.api.edge.rules import EdgeRules, path_of, protocols_of, rules_of
from mlx_manager.mlx_server.errors import RequestRateExceeded, ServerError, TokenRateExceeded
from mlx_manager.mlx_server.records import Exchange


class RateLimits:
    def __init__(self, app: ASGIApp, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._requests = Buckets(clock)
        self._tokens = Buckets(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or protocols_of(scope).at(path_of(scope)) is None:
            return await self._app(scope, receive, send)
        rules = rules_of(scope)
        if not (rules.requests_per_minute or rules.tokens_per_minute):
            return await self._app(scope, receive, send)
        exchange: Exchange = scope["state"]["exchange"]
        name = exchange.key_name if exchange.key_name is not None else _address(scope)
        refusal = self._charge_request(rules, name)
        sending = _with_headers(send, lambda: list(self._headers(rules, name)))
        if refusal is not None:
            return await refuse(refusal, scope, receive, sending)
        try:
            await self._app(scope, receive, sending)
        finally:
            self._charge_tokens(rules, name, exchange)

    def _charge_request(self, rules: EdgeRules, name: str) -> ServerError | None:
        """Charges nothing for a request that it refuses."""
        if rules.tokens_per_minute:
            balance = self._tokens.balance(name, rules.tokens_per_minute)
            if balance.wait_seconds > 0:
                return TokenRateExceeded(_message("tokens", balance), retry_after_seconds=_whole(balance.wait_seconds))
        if rules.requests_per_minute:
            balance = self._requests.balance(name, rules.requests_per_minute)
            if balance.wait_seconds > 0:
                wait_seconds = _whole(balance.wait_seconds)
                return RequestRateExceeded(_message("requests", balance), retry_after_seconds=wait_seconds)
            self._requests.take(name, 1, rules.requests_per_minute)
        return None

    def _charge_tokens(self, rules: EdgeRules, name: str, exchange: Exchange) -> None:
        """Those of clients that left, too."""
        record = exchange.generation
        if rules.tokens_per_minute and record is not None:
            self._tokens.take(name, record.prompt_tokens + record.completion_tokens, rules.tokens_per_minute)

    def _headers(self, rules: EdgeRules, name: str) -> Iterator[tuple[bytes, bytes]]:
        if rules.requests_per_minute:
            yield from _headers_of("requests", self._requests.balance(name, rules.requests_per_minute))
        if rules.tokens_per_minute:
            yield from _headers_of("tokens", self._tokens.balance(name, rules.tokens_per_minute))


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


def _with_headers(send: Send, headers: Callable[[], list[tuple[bytes, bytes]]]) -> Send:
    """No coroutine of its own: it is called for each chunk."""

    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers()]
        return send(message)

    return sending


def _message(what: str, balance: Balance) -> str:
    wait = duration(balance.wait_seconds)
    return f"Rate limit reached: {balance.limit} {what} per minute for each key. Try again in {wait}."


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client is not None else ""
