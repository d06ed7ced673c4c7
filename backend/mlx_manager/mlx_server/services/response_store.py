"""Stores responses in memory for GET, DELETE and `previous_response_id`, within limits of bytes and age. Knows no HTTP.

Each API key sees its own responses only. They are stored as the JSON that is sent.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from mlx_manager.mlx_server.errors import PreviousResponseNotFound, ResponseNotFound
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.types import ChoiceFinished, Completed, GenerationEvents, Started, Usage


@dataclass(slots=True, eq=False)
class StoredResponse:
    """`items` are the input items, each as JSON. `body` is the initial snapshot until the response ends."""

    id: str
    owner: str | None
    items: tuple[bytes, ...]
    body: bytes
    store: "ResponseStore"
    record: GenerationRecord
    expires_at: float = 0
    counted_bytes: int = 0
    cancelled: bool = False
    deleted: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _stop: Callable[[], None] | None = None

    @property
    def size_bytes(self) -> int:
        """Items shared by several responses count once for each response."""
        return len(self.body) + sum(map(len, self.items))

    @property
    def is_running(self) -> bool:
        return not self.ended.is_set()

    def keep(self, response: JsonObject) -> None:
        """Stores the finished response."""
        self.body = msgspec.json.encode(response)
        self.ended.set()
        if not self.deleted:
            self.store.add(self)

    def cancel(self) -> None:
        if self.is_running and not self.cancelled:
            self.cancelled = True
            if self._stop is not None:
                self._stop()

    async def cancellable(self, events: GenerationEvents) -> GenerationEvents:
        """Passes `events` on until `cancel`, which ends the answer at that point.

        Drops the response if its client disconnects.
        """
        loop = asyncio.get_running_loop()
        waiting: asyncio.Task[object] | None = None

        def stop() -> None:
            if waiting is not None:
                waiting.cancel()

        self._stop = stop
        has_started = False
        try:
            async with aclosing(events):
                while not self.cancelled:
                    waiting = asyncio.current_task(loop)
                    event = await anext(events, None)
                    waiting = None
                    if event is None:
                        return
                    has_started = has_started or isinstance(event, Started)
                    yield event
        except asyncio.CancelledError:
            if waiting is None or not self.cancelled or waiting.uncancel() > 0:  # not cancelled by `cancel`
                self.store.forget(self)
                raise
        except BaseException:
            self.store.forget(self)
            raise
        if not has_started:
            yield Started()
        yield ChoiceFinished(0, "stop", None)
        record = self.record
        tokens = record.prompt_tokens, record.completion_tokens, record.cached_tokens
        yield Completed(Usage(*tokens, miss=record.miss, compared=record.compared))


class ResponseStore:
    """Used from one event loop. When it is full, a new response evicts the oldest."""

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._bytes = 0

    def begin(
        self, owner: str | None, items: Sequence[bytes], snapshot: JsonObject, record: GenerationRecord
    ) -> StoredResponse:
        """Stores a response that starts to run."""
        body = msgspec.json.encode(snapshot)
        stored = StoredResponse(str(snapshot["id"]), owner, tuple(items), body, self, record)
        self.add(stored)
        return stored

    def get(self, response_id: str, owner: str | None) -> StoredResponse:
        """Raises ResponseNotFound, also for a response of another API key."""
        found = self._find(response_id, owner)
        if found is None:
            raise ResponseNotFound(
                f"Response {response_id[:100]!r} does not exist. Responses expire after {self._seconds:g} s. Check the "
                "id, and that 'store' was not false."
            )
        return found

    def conversation(self, response_id: str, owner: str | None) -> list[bytes]:
        """The items of a response's input and output. Raises PreviousResponseNotFound."""
        found = self._find(response_id, owner)
        if found is None or found.is_running:
            why = "does not exist" if found is None else "is still running"
            raise PreviousResponseNotFound(
                f"Previous response {response_id[:100]!r} {why}. Send the conversation's items as 'input', without "
                "'previous_response_id'.",
                param="previous_response_id",
            )
        return [*found.items, *_output(found)]

    def item(self, item_id: str, owner: str | None) -> bytes | None:
        """The newest stored item with that id."""
        for stored in reversed(self._responses.values()):
            if stored.owner == owner and not self._is_over(stored):
                for item in (*stored.items, *_output(stored)):
                    if msgspec.json.decode(item, type=_Identified).id == item_id:
                        return item
        return None

    def delete(self, stored: StoredResponse) -> None:
        """Also cancels a running response."""
        stored.deleted = True
        stored.cancel()
        self.forget(stored)

    def add(self, stored: StoredResponse) -> None:
        self.forget(stored)
        stored.expires_at = time.monotonic() + self._seconds
        stored.counted_bytes = stored.size_bytes
        self._responses[stored.id] = stored
        self._bytes += stored.counted_bytes
        for other in list(self._responses.values()):
            if self._bytes <= self._max_bytes and not self._is_over(other):
                break
            self.forget(other)

    def forget(self, stored: StoredResponse) -> None:
        if self._responses.pop(stored.id, None) is not None:
            self._bytes -= stored.counted_bytes

    def _find(self, response_id: str, owner: str | None) -> StoredResponse | None:
        found = self._responses.get(response_id)
        return found if found is not None and found.owner == owner and not self._is_over(found) else None

    def _is_over(self, stored: StoredResponse) -> bool:
        return time.monotonic() > stored.expires_at and not stored.is_running


class _Identified(msgspec.Struct):
    id: str | None = None


class _Output(msgspec.Struct):
    output: list[msgspec.Raw] = []


def _output(stored: StoredResponse) -> Iterator[bytes]:
    return map(bytes, msgspec.json.decode(stored.body, type=_Output).output)
