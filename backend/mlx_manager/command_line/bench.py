"""`bench`: measures over HTTP how fast a server answers a few clients and many.

Each client sends one prompt after another, streams the answer, and records the times of its chunks. The clients run in
this process. If the server runs on the same machine, they share its cores.
"""

import asyncio
import json
import statistics
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import httpx

from mlx_manager.command_line.connection import Server, find_server, refusal
from mlx_manager.command_line.console import CommandFailed, format_number, note, print_json, print_table

COLUMNS = ("CLIENTS", "REQUESTS", "FAILED", "TOK/S", "TTFT P50", "TTFT P95", "ITL P50", "ITL P95")
DEFAULT_CLIENTS = (1, 4, 16)
LIMIT_SECONDS = 600
_WORDS = "Tell a long story about a river, a mill, two brothers and the town below, with every season in it. " * 3


@dataclass(slots=True)
class Answer:
    """Times in seconds since the request. `arrivals` are those of the chunks with text."""

    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Level:
    """Results for one number of concurrent clients. Times are in milliseconds; None if no request was answered."""

    clients: int
    requests: int
    failed: int
    tokens_per_second: float
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None


def bench(
    base_url: str | None,
    api_key: str | None,
    model: str | None,
    clients: Sequence[int],
    rounds: int,
    max_tokens: int,
    as_json: bool,
) -> None:
    server = find_server(base_url, api_key)
    model = model if model is not None else server.a_model()
    levels = asyncio.run(_measure(server, model, clients, rounds, max_tokens))
    if as_json:
        report = {"base_url": server.root, "model": model, "max_tokens": max_tokens, "rounds": rounds}
        print_json(report | {"levels": [asdict(level) for level in levels]})
    else:
        note(f"{model} at {server.root}, {max_tokens} tokens for each request; times in ms.")
        print_table(COLUMNS, [_cells(level) for level in levels])
    failed = sum(level.failed for level in levels)
    if failed:
        raise CommandFailed(
            f"{failed} of {sum(level.requests for level in levels)} requests failed. Check the server's log."
        )


async def _measure(server: Server, model: str, clients: Sequence[int], rounds: int, max_tokens: int) -> list[Level]:
    limits = httpx.Limits(max_connections=max(clients))
    async with server.client(httpx.AsyncClient, timeout=LIMIT_SECONDS, limits=limits) as client:
        await _ask(client, server, model, max_tokens)  # loads the model, and raises the server's error if it refuses
        return [await _level(client, server, model, count, rounds, max_tokens) for count in clients]


async def _level(
    client: httpx.AsyncClient, server: Server, model: str, clients: int, rounds: int, max_tokens: int
) -> Level:
    async def one_client() -> list[Answer | CommandFailed]:
        return [await _outcome(client, server, model, max_tokens) for _ in range(rounds)]

    started = time.perf_counter()
    outcomes = await asyncio.gather(*(one_client() for _ in range(clients)))
    seconds = time.perf_counter() - started
    answers = [outcome for each in outcomes for outcome in each if isinstance(outcome, Answer)]
    return summarise(clients, clients * rounds, answers, seconds)


def summarise(clients: int, requests: int, answers: Sequence[Answer], seconds: float) -> Level:
    """A gap is the time between two chunks of one answer, regardless of their number of tokens."""
    first = [answer.arrivals[0] for answer in answers]
    gaps = [later - earlier for answer in answers for earlier, later in pairwise(answer.arrivals)]
    tokens = sum(answer.tokens for answer in answers)
    return Level(
        clients=clients,
        requests=requests,
        failed=requests - len(answers),
        tokens_per_second=round(tokens / seconds, 1),
        ttft_p50_ms=_percentile_ms(first, 50),
        ttft_p95_ms=_percentile_ms(first, 95),
        itl_p50_ms=_percentile_ms(gaps, 50),
        itl_p95_ms=_percentile_ms(gaps, 95),
    )


def _percentile_ms(seconds: Sequence[float], percent: int) -> float | None:
    if not seconds:
        return None
    values = seconds if len(seconds) > 1 else [seconds[0], seconds[0]]
    return round(1000 * statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 2)


async def _outcome(client: httpx.AsyncClient, server: Server, model: str, max_tokens: int) -> Answer | CommandFailed:
    try:
        return await _ask(client, server, model, max_tokens)
    except CommandFailed as exc:
        return exc


async def _ask(client: httpx.AsyncClient, server: Server, model: str, max_tokens: int) -> Answer:
    """Streams one answer of exactly `max_tokens` to a prompt that is in no cache. Raises CommandFailed."""
    body = {
        "model": model,
        "prompt": f"{uuid.uuid4()} {_WORDS}",
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    try:
        async with client.stream("POST", f"{server.root}/v1/completions", json=body) as response:
            if not response.is_success:
                await response.aread()
                raise refusal(response, server.root)
            return await _read(response, started)
    except httpx.HTTPError as exc:
        raise CommandFailed(
            f"The server at {server.root} does not answer ({str(exc) or type(exc).__name__}). "
            "Start one with `mlx-manager serve`, or give --base-url."
        ) from exc


async def _read(response: httpx.Response, started: float) -> Answer:
    answer = Answer()
    async for line in response.aiter_lines():
        now = time.perf_counter() - started
        if line.startswith('data: {"error"'):
            raise CommandFailed(f"The stream ended with an error: {line}. Check the server's log.")
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if any(choice.get("text") for choice in chunk["choices"]):
            answer.arrivals.append(now)
        answer.tokens = (chunk.get("usage") or {}).get("completion_tokens", answer.tokens)
    if not answer.arrivals or not answer.tokens:
        raise CommandFailed(
            f"{response.url} sent no text, or no `usage`, so it cannot be measured. Choose another server."
        )
    return answer


def _cells(level: Level) -> Sequence[str]:
    return (
        str(level.clients),
        str(level.requests),
        str(level.failed),
        format_number(level.tokens_per_second, 1),
        *(
            format_number(value, 1)
            for value in (level.ttft_p50_ms, level.ttft_p95_ms, level.itl_p50_ms, level.itl_p95_ms)
        ),
    )
