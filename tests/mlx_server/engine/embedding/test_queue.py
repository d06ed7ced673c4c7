"""Which texts make a batch: about equally long ones, requests in turns, within a budget of tokens."""

from array import array
from collections import Counter

import pytest

from mlx_manager.mlx_server.engine.embedding.queue import Batch, TextQueue, bucket_width
from mlx_manager.mlx_server.engine.messages import Encode


def encode(sequence: int, *lengths: int) -> Encode:
    tokens = array("i", [sequence] * sum(lengths))
    return Encode(sequence, list(lengths), tokens.tobytes(), [], 8)


def queue_of(*messages: Encode, max_width_ratio: int = 1) -> TextQueue:
    queue = TextQueue(max_width_ratio)
    for message in messages:
        queue.add(message, 0.0)
    return queue


def batches(queue: TextQueue, budget: int) -> list[Batch]:
    found = []
    while (batch := queue.next_batch(budget)) is not None:
        found.append(batch)
    return found


def sequences(batch: Batch) -> Counter[int]:
    return Counter(text.request.message.sequence for text in batch.texts)


def test_every_text_is_in_one_batch_with_its_own_tokens() -> None:
    queue = queue_of(encode(1, 5, 90, 300, 5), encode(2, 17, 6))
    found = [text for batch in batches(queue, 256) for text in batch.texts]
    places = sorted((text.request.message.sequence, text.place, len(text.tokens)) for text in found)
    assert places == [(1, 0, 5), (1, 1, 90), (1, 2, 300), (1, 3, 5), (2, 0, 17), (2, 1, 6)]
    assert all(set(text.tokens) == {text.request.message.sequence} for text in found)
    assert len(queue) == 0


def test_batches_keep_to_the_budget_padding_included() -> None:
    queue = queue_of(encode(1, *range(1, 200)))
    for batch in batches(queue, 512):
        assert batch.width * len(batch.texts) <= 512
        assert all(batch.width >= len(text.tokens) for text in batch.texts)


def test_a_text_longer_than_the_budget_goes_alone() -> None:
    (batch,) = batches(queue_of(encode(1, 1000)), 256)
    assert [len(text.tokens) for text in batch.texts] == [1000]


@pytest.mark.parametrize(("max_width_ratio", "most"), [(1, 1.35), (2, 2.0)])
def test_little_of_a_batch_is_padding(max_width_ratio: int, most: float) -> None:
    queue = queue_of(encode(1, *range(32, 400, 3)), max_width_ratio=max_width_ratio)
    for batch in batches(queue, 4096):
        real = sum(len(text.tokens) for text in batch.texts)
        assert batch.width * len(batch.texts) <= most * real


def test_texts_of_several_buckets_share_a_batch_where_padding_is_cheap() -> None:
    lengths = (100, 90, 80, 70, 60)
    assert len(batches(queue_of(encode(1, *lengths), max_width_ratio=2), 4096)) < len(
        batches(queue_of(encode(1, *lengths)), 4096)
    )


def test_a_short_request_waits_for_one_batch_at_most_behind_a_long_list() -> None:
    queue = queue_of(encode(1, *[200] * 2048))
    assert queue.next_batch(1024) is not None
    queue.add(encode(2, 10), 0.0)
    following = [queue.next_batch(1024), queue.next_batch(1024)]
    assert any(batch is not None and sequences(batch)[2] for batch in following)


def test_a_long_list_is_not_starved_by_a_stream_of_short_requests() -> None:
    queue = queue_of(encode(0, *[100] * 64))
    served = 0
    for number in range(1, 200):
        queue.add(encode(number, 10), 0.0)
        batch = queue.next_batch(112 * 4)
        assert batch is not None
        served += sequences(batch)[0]
    assert served == 64


def test_requests_of_the_same_length_share_a_batch() -> None:
    queue = queue_of(*(encode(number, 20) for number in range(8)))
    (batch,) = batches(queue, 4096)
    assert len(sequences(batch)) == 8


def test_nothing_of_a_cancelled_request_is_left() -> None:
    queue = queue_of(encode(1, *[30] * 100), encode(2, 30))
    queue.cancel(1)
    (batch,) = batches(queue, 4096)
    assert sequences(batch) == {2: 1}
    queue.cancel(7)


def test_widths_come_from_a_small_set() -> None:
    widths = {bucket_width(length) for length in range(1, 8193)}
    assert len(widths) <= 40
    assert all(length <= bucket_width(length) <= max(8, 1.25 * length + 7) for length in range(1, 8193))
