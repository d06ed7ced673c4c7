"""Long streams in the background of other measurements."""

import asyncio
from collections.abc import Sequence

from benchmarks.load import StreamConnection, Target

STREAM_TOKENS = 6_000
"""More than a measurement reads: it drops the streams."""


class RunningStreams:
    """Reads the streams inside the block; its end or `drop` drops them. Times count from `started`."""

    def __init__(self, target: Target, prompts: Sequence[str], started: float) -> None:
        self._target = target
        self._prompts = prompts
        self._started = started
        self._connections: list[StreamConnection] = []
        self._tasks: list[asyncio.Task[object]] = []

    async def __aenter__(self) -> "RunningStreams":
        for prompt in self._prompts:
            connection = await StreamConnection.open(self._target)
            request = self._target.request(prompt, STREAM_TOKENS)
            self._connections.append(connection)
            self._tasks.append(asyncio.create_task(connection.stream(request, STREAM_TOKENS, self._started)))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self) -> None:
        for connection in self._connections:
            connection.close()

    def arrivals(self) -> list[list[float]]:
        return [list(connection.times.arrivals) for connection in self._connections]

    async def grow(self, by: int) -> None:
        """Waits until each stream has this many more chunks. Raises RuntimeError if a stream has ended."""
        goals = [len(connection.times.arrivals) + by for connection in self._connections]
        while any(
            len(connection.times.arrivals) < goal for connection, goal in zip(self._connections, goals, strict=True)
        ):
            ended = [task for task in self._tasks if task.done()]
            if ended:
                raise RuntimeError(f"a stream of {STREAM_TOKENS} tokens ended early: {ended[0]}")
            await asyncio.sleep(0.005)
