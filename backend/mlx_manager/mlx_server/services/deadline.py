"""The limit on how long a request may take, whatever its backend waits for."""

import asyncio
from types import TracebackType

from mlx_manager.mlx_server.errors import RequestTimeout


class Deadline:
    """Bounds each wait of one request by the same moment: `with deadline: await ...`. Close it.

    One timer serves all waits, because an `asyncio.timeout` around each event costs 8 us. What happens between two
    waits is not interrupted: the next wait raises. The waits may be those of several tasks, one after the other.
    """

    __slots__ = ("_loop", "_seconds", "_timer", "_waiting", "expired")

    def __init__(self, seconds: float) -> None:
        """0 is no limit."""
        self.expired = False
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()  # looking it up for each wait would cost 0.25 us
        self._waiting: asyncio.Task[object] | None = None
        self._timer = self._loop.call_later(seconds, self._expire) if seconds else None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> None:
        """Raises RequestTimeout."""
        if self.expired:
            raise self._failure()
        self._waiting = asyncio.current_task(self._loop)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises RequestTimeout in place of the CancelledError that `_expire` asked for."""
        task, self._waiting = self._waiting, None
        if self.expired and task is not None:
            is_cancelled_by_others = task.uncancel() > 0
            if kind in (None, asyncio.CancelledError) and not is_cancelled_by_others:
                raise self._failure() from exc

    def _expire(self) -> None:
        self.expired = True
        if self._waiting is not None:
            self._waiting.cancel()

    def _failure(self) -> RequestTimeout:
        return RequestTimeout(
            f"The request took longer than {self._seconds:g} s, the limit of this server, and was ended."
        )
