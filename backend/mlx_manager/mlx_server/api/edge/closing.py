"""How a connection ends: so that the answer arrives, and so that it ends at all.

A socket that is closed while bytes are unread sends a reset, and the client may lose the answer that was written
before. And a transport waits until all that was written is taken, which may be never.
"""

import asyncio
from collections.abc import Callable

LINGER_SECONDS = 2.0


class ClosingTransport(asyncio.Transport):
    """A connection's transport, with another `close`. `lingers` says whether the client is still sending."""

    def __init__(self, transport: asyncio.Transport, lingers: Callable[[], bool], patience_seconds: float) -> None:
        super().__init__()
        self._transport = transport
        self._lingers = lingers
        self._patience_seconds = patience_seconds
        self._timer: asyncio.TimerHandle | None = None
        self.write = transport.write  # type: ignore[method-assign]  # each token of a stream comes this way
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.abort = transport.abort  # type: ignore[method-assign]

    def is_closing(self) -> bool:
        return self._timer is not None or self._transport.is_closing()

    def close(self) -> None:
        """Once; the client has a while to stop sending, and to take in what was written."""
        if self.is_closing():
            return
        lingers = self._lingers()
        seconds = LINGER_SECONDS if lingers else self._patience_seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._transport.abort)
        if lingers and self._transport.can_write_eof():
            self._transport.resume_reading()
            self._transport.write_eof()
        else:
            self._transport.close()

    def closed(self) -> None:
        """The connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
