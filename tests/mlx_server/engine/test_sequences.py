import asyncio

import pytest

from mlx_manager.mlx_server.engine.sequences import Score, SequenceGroup
from mlx_manager.mlx_server.errors import EngineFailed


def group_of(count: int) -> tuple[SequenceGroup, list[int]]:
    """A group, and the indices that it cancels."""
    cancelled: list[int] = []
    return SequenceGroup(count, cancelled.append), cancelled


async def test_tokens_that_came_before_a_failure_are_given_before_it_is_raised() -> None:
    group, _ = group_of(1)
    (member,) = group.members
    member.push_token(7)
    member.fail(EngineFailed("gone"))
    assert (await anext(group))[1].token_ids == [7]
    with pytest.raises(EngineFailed, match="gone"):
        await anext(group)


async def test_a_failure_wakes_a_task_that_waits() -> None:
    group, _ = group_of(2)
    waiting = asyncio.create_task(anext(group))
    await asyncio.sleep(0)
    group.members[1].fail(EngineFailed("gone"))
    with pytest.raises(EngineFailed, match="gone"):
        await waiting


async def test_a_consumer_that_lags_takes_each_sequences_tokens_at_once_in_turns() -> None:
    group, _ = group_of(2)
    first, second = group.members
    for token in range(3):
        second.push_token(token)
        first.push_token(10 + token)
    second.finish("length")
    assert [(index, tokens.token_ids) for index, tokens in [await anext(group), await anext(group)]] == [
        (1, [0, 1, 2]),
        (0, [10, 11, 12]),
    ]
    first.push_token(13)
    first.finish("stop")
    assert [(index, tokens.token_ids, tokens.finish_reason) async for index, tokens in group] == [(0, [13], "stop")]


async def test_nothing_more_comes_of_a_cancelled_sequence() -> None:
    group, cancelled = group_of(2)
    for member in group.members:
        member.push_token(1)
    group.cancel(0)
    group.cancel(0)
    assert (cancelled, (await anext(group))[0]) == ([0], 1)


async def test_scores_go_with_their_tokens_and_change_no_earlier_ones() -> None:
    group, _ = group_of(1)
    (member,) = group.members
    member.push_token(1)
    _, before = await anext(group)
    member.push_score(Score(-1.0, [], []))
    member.push_token(2)
    _, after = await anext(group)
    assert (len(before.scores), len(after.scores)) == (0, 1)
