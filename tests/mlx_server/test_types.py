import anyio
import pytest

from mlx_manager.mlx_server.errors import EngineFailed
from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.types import (
    Choice,
    ChoiceFinished,
    Completed,
    Generation,
    GenerationEvent,
    GenerationEvents,
    Started,
    TextDelta,
    Usage,
)

pytestmark = pytest.mark.anyio


class Events:
    """A stream of events that knows whether it was closed, and may break before its end."""

    def __init__(self, *events: GenerationEvent, failure: Exception | None = None) -> None:
        self.closed = False
        self._events = events
        self._failure = failure

    async def generate(self) -> GenerationEvents:
        try:
            for event in self._events:
                yield event
            if self._failure is not None:
                raise self._failure
        finally:
            self.closed = True


async def test_a_generation_is_the_fold_of_its_events() -> None:
    events = Events(
        Started(), TextDelta(0, "Hel"), TextDelta(0, "lo"), ChoiceFinished(0, "length", None), Completed(Usage(3, 2))
    )
    assert await fold(events.generate()) == Generation((Choice(0, "Hello", "length"),), Usage(3, 2))


async def test_choices_are_in_order_of_their_index_however_they_ended() -> None:
    events = Events(
        Started(),
        TextDelta(2, "c"),
        TextDelta(0, "a"),
        ChoiceFinished(2, "stop", "END"),
        TextDelta(1, "b"),
        TextDelta(0, "A"),
        ChoiceFinished(1, "length", None),
        ChoiceFinished(0, "stop", None),
        Completed(Usage(1, 4)),
    )
    assert (await fold(events.generate())).choices == (
        Choice(0, "aA", "stop"),
        Choice(1, "b", "length"),
        Choice(2, "c", "stop"),
    )


async def test_a_choice_without_text_is_an_empty_one() -> None:
    events = Events(Started(), ChoiceFinished(0, "stop", None), Completed(Usage(5, 1)))
    assert await fold(events.generate()) == Generation((Choice(0, "", "stop"),), Usage(5, 1))


async def test_the_events_are_closed_at_the_end() -> None:
    events = Events(Started(), Completed(Usage(0, 0)))
    await fold(events.generate())
    assert events.closed


async def test_a_failure_in_the_middle_is_passed_on_and_closes_the_events() -> None:
    events = Events(Started(), TextDelta(0, "Hel"), failure=EngineFailed("The worker died."))
    with pytest.raises(EngineFailed, match="The worker died"):
        await fold(events.generate())
    assert events.closed


async def test_whoever_gives_up_on_a_generation_closes_its_events() -> None:
    closed = False

    async def generate() -> GenerationEvents:
        nonlocal closed
        try:
            yield Started()
            await anyio.sleep_forever()
        finally:
            closed = True

    with anyio.move_on_after(0.01):
        await fold(generate())
    assert closed
