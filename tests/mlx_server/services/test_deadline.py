"""The deadline, around waits that take as long as they are told to."""

import asyncio
import time
from contextlib import closing

import pytest

from mlx_manager.mlx_server.errors import RequestTimeout
from mlx_manager.mlx_server.services.deadline import Deadline

pytestmark = pytest.mark.anyio


class Source:
    """What is waited for. Counts the waits that were interrupted."""

    def __init__(self) -> None:
        self.interrupted = 0

    async def wait(self, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.interrupted += 1
            raise
        return "here"


async def wait_within(deadline: Deadline, source: Source, *pauses: float) -> list[str]:
    came = []
    for pause in pauses:
        with deadline:
            came.append(await source.wait(pause))
    return came


async def test_what_comes_in_time_passes() -> None:
    for seconds in (0, 60):
        with closing(Deadline(seconds)) as deadline:
            assert await wait_within(deadline, Source(), 0, 0.01) == ["here", "here"]


async def test_what_does_not_come_in_time_is_a_timeout_and_is_ended() -> None:
    source = Source()
    with closing(Deadline(0.2)) as deadline, pytest.raises(RequestTimeout, match=r"0\.2 s"):
        await wait_within(deadline, source, 0, 60)
    assert source.interrupted == 1
    await asyncio.sleep(0)  # the task goes on: nothing is left of the cancellation
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_consumer_that_is_too_slow_is_not_interrupted_and_gets_the_timeout_next() -> None:
    source = Source()
    with closing(Deadline(0.05)) as deadline:
        await wait_within(deadline, source, 0)
        await asyncio.sleep(0.2)
        with pytest.raises(RequestTimeout):
            await wait_within(deadline, source, 0)
    assert source.interrupted == 0


async def test_the_waits_may_be_those_of_two_tasks() -> None:
    source = Source()
    with closing(Deadline(0.2)) as deadline:
        await asyncio.create_task(wait_within(deadline, source, 0))
        with pytest.raises(RequestTimeout):
            await asyncio.create_task(wait_within(deadline, source, 60))
    assert source.interrupted == 1


async def cancelled_after(pause: float, seconds: float, source: Source) -> "asyncio.Task[None]":
    """A consumer with so many seconds, which somebody cancels after the pause."""

    async def consume() -> None:
        with closing(Deadline(seconds)) as deadline, deadline:
            await source.wait(60)

    consumer = asyncio.create_task(consume())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(pause, consumer.cancel)
    return consumer


async def test_cancelling_the_consumer_is_no_timeout() -> None:
    source = Source()
    with pytest.raises(asyncio.CancelledError):
        await (await cancelled_after(0.01, 60, source))
    assert source.interrupted == 1


async def test_a_consumer_that_is_cancelled_as_its_time_is_over_is_cancelled() -> None:
    consumer = await cancelled_after(0.01, 0.01, Source())
    time.sleep(0.05)  # noqa: ASYNC251  both are due in one turn of the loop
    with pytest.raises(asyncio.CancelledError):
        await consumer
