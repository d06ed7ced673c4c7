"""Stages the faults of a soak in sequence, and defines which errors each one excuses."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.soak.client import Outcome
from benchmarks.soak.traffic import DEMO, OTHERS, Json

RECOVERY_SECONDS = 60.0
GRACE_SECONDS = 1.0
PAUSE_SECONDS = 2.0
"""How long a worker is suspended before it continues."""
POLL_SECONDS = 0.1
_DEAD = frozenset({"engine_failed", "not_ready", "model_load_failed"})
"""Excused after a worker's death: running requests, and requests that wait for its successor or for a load."""
_NO_ROOM = frozenset({"insufficient_memory"})
"""Excused while the only other place is pinned. A request for a place in use waits."""


@dataclass(slots=True)
class Window:
    """Between the fault and the recovery, requests for `models` may fail with `codes`."""

    name: str
    models: frozenset[str]
    codes: frozenset[str]
    from_seconds: float
    until_seconds: float = float("inf")

    def excuses(self, outcome: Outcome) -> bool:
        return (
            outcome.model in self.models
            and outcome.code in self.codes
            and outcome.until_seconds >= self.from_seconds
            and outcome.at_seconds <= self.until_seconds
        )


class Faults:
    """Runs on the soak's event loop, with the clients. `failures` lists faults without recovery or effect."""

    def __init__(self, base_url: str, process: psutil.Process, settings_file: Path, started: float) -> None:
        self.windows: list[Window] = []
        self.failures: list[str] = []
        self.other = OTHERS[0]
        self._http = httpx.AsyncClient(base_url=base_url, timeout=RECOVERY_SECONDS)
        self._process = process
        self._settings_file = settings_file
        self._started = started
        self._keep_alive_seconds = 1_000

    async def aclose(self) -> None:
        await self._http.aclose()

    async def run(self, dice: random.Random, until_seconds: float, interval_seconds: float) -> None:
        """Stages every kind of fault once per round, in random order.

        In the last half of the time the demo model's worker has no faults, so that it lives long enough to be judged.
        """
        kinds, spare_from = [*_KINDS], until_seconds / 2
        while True:
            for name in dice.sample(kinds, len(kinds)):
                began = self._now()
                if began + interval_seconds > until_seconds:
                    return
                try:
                    await _KINDS[name](self, dice.choice([DEMO, self.other]) if began < spare_from else self.other)
                except (httpx.HTTPError, psutil.Error, TimeoutError, LookupError) as exc:
                    self.failures.append(f"{name} at {began:.0f} s failed: {exc!r}")
                await asyncio.sleep(max(0.5, began + interval_seconds - self._now()))

    async def kill_worker(self, model: str) -> None:
        with self._window(f"kill -9 {model}", model, _DEAD):
            worker = await self._worker(model)
            worker.kill()
            await self._replaced(worker, model)

    async def stop_worker(self, model: str) -> None:
        """Suspends the worker for less than the server's timeout: no request may fail."""
        with self._window(f"pause {model}", model, frozenset()):
            worker = await self._worker(model)
            worker.suspend()
            await asyncio.sleep(PAUSE_SECONDS)
            worker.resume()
            await self._recovered(model)

    async def hang_worker(self, model: str) -> None:
        """Suspends the worker until the server kills it."""
        with self._window(f"hang {model}", model, _DEAD):
            worker = await self._worker(model)
            worker.suspend()
            await self._replaced(worker, model)

    async def unload(self, model: str) -> None:
        with self._window(f"unload {model}", model, frozenset({"not_ready"})):
            await self._admin(f"models/{model}/unload")
            await self._recovered(model)

    async def load_and_pin(self, model: str) -> None:
        with self._window(f"pin {self.other}", self.other, _NO_ROOM):
            for action in ("load", "pin", "unpin"):
                await self._admin(f"models/{self.other}/{action}")

    async def reload(self, model: str) -> None:
        """Reloads by a signal. The file changes each time, and the pool must apply the change."""
        with self._window("SIGHUP", model, frozenset()):
            self._keep_alive_seconds += 1
            write_settings(self._settings_file, self._keep_alive_seconds)
            self._process.send_signal(signal.SIGHUP)
            await self._until(lambda row: row["ttl"] == self._keep_alive_seconds, "SIGHUP changed nothing", DEMO)

    async def change_turns(self, model: str) -> None:
        """Switches requests to the other of the two models, which waits for this one's place."""
        self.other = OTHERS[1 - OTHERS.index(self.other)]
        with self._window(f"turn to {self.other}", self.other, frozenset()):
            await self._recovered(self.other)

    @contextlib.contextmanager
    def _window(self, name: str, model: str, codes: frozenset[str]) -> Iterator[None]:
        models = frozenset(OTHERS) if model in OTHERS else frozenset({model})
        window = Window(name, models, codes, self._now())
        self.windows.append(window)
        try:
            yield
        finally:
            window.until_seconds = self._now() + GRACE_SECONDS

    async def _replaced(self, worker: psutil.Process, model: str) -> None:
        await asyncio.to_thread(worker.wait, RECOVERY_SECONDS)
        await self._until(lambda row: row["pid"] != worker.pid, f"the death of {model}'s worker went unnoticed", model)
        await self._recovered(model)

    async def _recovered(self, model: str) -> None:
        settled = ("loaded", "unloaded")
        await self._until(lambda row: row["state"] in settled, f"{model} did not come back", model)
        async with asyncio.timeout(RECOVERY_SECONDS):  # it may still be in use by other requests
            while model in OTHERS and (await self._row(model))["state"] != "loaded":
                await self._http.post(f"/admin/models/{model}/load")
                await asyncio.sleep(POLL_SECONDS)

    async def _until(self, good: Callable[[Json], bool], failure: str, model: str) -> None:
        deadline = self._now() + RECOVERY_SECONDS
        while not good(row := await self._row(model)):
            if self._now() > deadline:
                self.failures.append(f"{failure} within {RECOVERY_SECONDS:g} s: {row}")
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _worker(self, model: str) -> psutil.Process:
        """The pid of the model's worker. Loads the model if necessary."""
        response = await self._http.post(f"/admin/models/{model}/load")
        pid = response.json().get("pid")
        if pid is None:
            raise LookupError(f"no worker: {response.text[:200]}")
        return psutil.Process(pid)

    async def _row(self, model: str) -> Json:
        rows = (await self._http.get("/admin/pool")).json()["models"]
        return next(row for row in rows if row["id"] == model)

    async def _admin(self, action: str) -> None:
        response = await self._http.post(f"/admin/{action}")
        if response.status_code != 200:
            self.failures.append(f"POST /admin/{action} answered {response.status_code}: {response.text[:200]}")

    def _now(self) -> float:
        return time.monotonic() - self._started


_KINDS: dict[str, Callable[[Faults, str], Awaitable[None]]] = {
    "kill": Faults.kill_worker,
    "pause": Faults.stop_worker,
    "hang": Faults.hang_worker,
    "unload": Faults.unload,
    "pin": Faults.load_and_pin,
    "reload": Faults.reload,
    "turn": Faults.change_turns,
    "turn back": Faults.change_turns,
}


def write_settings(file: Path, keep_alive_seconds: int) -> None:
    """Pins the demo model, so that the other two models replace each other."""
    file.write_text(f'keep_alive = {keep_alive_seconds}\n[[models]]\nid = "{DEMO}"\npin = true\n')
