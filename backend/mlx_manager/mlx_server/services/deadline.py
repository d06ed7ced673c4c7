"""The time limit of one request. Knows nothing of what its backend waits for."""

import asyncio
from types import TracebackType

from mlx_manager.mlx_server.errors import RequestTimeout


class Deadline:
    """Ends every wait of one request at the same moment: `with deadline: await ...`. Close it.

    One timer serves all waits, because an `asyncio.timeout` around each event costs 8 us. Code between two waits is not
    interrupted: the next wait raises. Several tasks may wait, one after the other.
    """

    __slots__ = ("_loop", "_seconds", "_timer", "_waiting", "expired")

    def __init__(self, seconds: float) -> None:
        """0 means no limit."""
        self.expired = False
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()  # a look-up for each wait costs 0.25 us
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
        """Raises RequestTimeout in place of the CancelledError that `_expire` caused."""
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
        return timed_out(self._seconds)


def timed_out(seconds: float) -> RequestTimeout:
    return RequestTimeout(
        f"The request took longer than {seconds:g} s and was cancelled. Lower max_tokens, or raise "
        "MLX_SERVER_REQUEST_TIMEOUT_SECONDS."
    )
