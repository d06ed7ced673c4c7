"""Request after request: what the processes hold must not grow. ENDURANCE_REQUESTS=2000 makes it a long one."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.running_server import HANG_SECONDS, RunningServer, eventually, running_server

REQUESTS = int(os.environ.get("ENDURANCE_REQUESTS", "100"))
WARM_UP_REQUESTS = min(REQUESTS, 200)
CLIENTS = 8
ALLOWED_GROWTH_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Footprint:
    pid: int
    memory_bytes: int
    descriptors: int
    threads: int


def test_memory_and_descriptors_stay_flat_over_many_mixed_requests(tmp_path: Path, babbler: Path) -> None:
    with running_server(tmp_path, available_models=babbler, log_level="WARNING", prefix_cache_gb=0.01) as server:
        send_mixed_requests(server, WARM_UP_REQUESTS)
        warm = footprints(server)
        send_mixed_requests(server, REQUESTS)
        flat = eventually(lambda: footprints(server), lambda now: not any(map(has_grown, warm, now)))
        print(*warm, *flat, sep="\n")


def has_grown(before: Footprint, after: Footprint) -> bool:
    assert after.pid == before.pid
    return (
        after.memory_bytes - before.memory_bytes > ALLOWED_GROWTH_BYTES
        or after.descriptors > before.descriptors
        or after.threads > before.threads + CLIENTS
    )


def send_mixed_requests(server: RunningServer, count: int) -> None:
    """Chats and completions, streamed or not, short and long, refused ones, and clients that leave."""
    dice = random.Random(count)
    with ThreadPoolExecutor(CLIENTS) as clients, httpx.Client(base_url=server.url, timeout=HANG_SECONDS) as client:
        list(clients.map(lambda seed: send_one(client, random.Random(seed)), [dice.random() for _ in range(count)]))


def send_one(client: httpx.Client, dice: random.Random) -> None:
    body: dict[str, Any] = {"max_tokens": dice.randrange(1, 30), "temperature": dice.choice([0, 1])}
    body |= {"stream": dice.random() < 0.5, "seed": dice.randrange(100)}
    chat = dice.random() < 0.5
    if chat:
        body |= {"model": "demo", "messages": [{"role": "user", "content": "Tell me a story. " * dice.randrange(1, 5)}]}
    else:
        body |= {"model": "babbler", "prompt": "word " * dice.randrange(1, 100)}
    status, leaves = 200, False
    match dice.randrange(20):
        case 0:
            body["temperature"], status = 5.0, 422
        case 1:
            body["model"], status = "nobody", 404
        case 2:
            body |= {"max_tokens": 4000}
            leaves = True
    with client.stream("POST", "/v1/chat/completions" if chat else "/v1/completions", json=body) as response:
        assert response.status_code == status
        if not (leaves and body["stream"]):
            response.read()


def footprints(server: RunningServer) -> list[Footprint]:
    """Of the API process, and of its workers: of these what MLX holds, for they keep freed buffers for a minute."""
    api = psutil.Process(server.process.pid)
    models = httpx.get(f"{server.url}/admin/pool", timeout=HANG_SECONDS).json()["models"]
    held = {model["pid"]: model["memory"]["active_bytes"] for model in models if model["memory"]}
    return [
        Footprint(
            process.pid, held.get(process.pid, process.memory_info().rss), process.num_fds(), process.num_threads()
        )
        for process in (api, *sorted(server.workers(), key=lambda worker: worker.pid))
    ]
