"""Many clients at once on the real server: company changes nobody's answer."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.running_server import RunningServer

REQUESTS: list[dict[str, Any]] = [
    {"content": f"Count to {n}", "temperature": 0}
    if n % 2
    else {"content": "Tell me a story.", "seed": n, "temperature": 1}
    for n in range(3, 19)
]


def test_sixteen_clients_at_once_each_get_the_text_they_get_alone(server: RunningServer) -> None:
    def answer(request: dict[str, Any]) -> tuple[str, str, int]:
        body = server.chat(**request, max_tokens=80)
        choice = body["choices"][0]
        return choice["message"]["content"], choice["finish_reason"], body["usage"]["completion_tokens"]

    alone = [answer(request) for request in REQUESTS]
    with ThreadPoolExecutor(len(REQUESTS)) as clients:
        together = list(clients.map(answer, REQUESTS))
    assert together == alone
    assert len(set(alone)) == len(alone)
