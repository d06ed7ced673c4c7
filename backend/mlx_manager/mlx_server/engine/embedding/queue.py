"""The queue of texts to encode, and the choice of the next batch. Imports no MLX.

The request with the fewest tokens served goes first, so a short request waits for at most one batch of a large one. The
texts of a batch have similar lengths, to keep padding small.
"""

import itertools
from array import array
from collections import defaultdict
from dataclasses import dataclass, field

from mlx_manager.mlx_server.engine.messages import Encode

TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """`place` is the index of the text in its request."""

    request: "_Request"
    place: int
    tokens: "array[int]"
    second_at: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The texts are padded to `width` tokens."""

    texts: list[Text]
    width: int


@dataclass(slots=True, eq=False)
class _Request:
    message: Encode
    number: int
    added_at: float
    served_tokens: int
    """Padding included. Starts at the smallest count among the other requests."""
    waiting: dict[int, list[Text]] = field(default_factory=lambda: defaultdict(list))
    """Queued texts by bucket width."""
    begun: bool = False


class TextQueue:
    """`max_width_ratio`: largest ratio of a batch's width to its shortest text; with 1, a batch has only one bucket."""

    def __init__(self, max_width_ratio: int) -> None:
        self._max_width_ratio = max_width_ratio
        self._requests: dict[int, _Request] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def texts(self) -> int:
        """Number of queued texts."""
        return sum(len(texts) for request in self._requests.values() for texts in request.waiting.values())

    def add(self, message: Encode, now: float) -> None:
        least = min((request.served_tokens for request in self._requests.values()), default=0)
        request = _Request(message, next(self._numbers), now, least)
        tokens = array("i")
        tokens.frombytes(message.tokens)
        start = 0
        for place, length in enumerate(message.lengths):
            second_at = message.second_at[place] if message.second_at else 0
            text = Text(request, place, tokens[start : start + length], second_at)
            request.waiting[bucket_width(length)].append(text)
            start += length
        self._requests[message.sequence] = request

    def cancel(self, sequence: int) -> None:
        self._requests.pop(sequence, None)

    def next_batch(self, budget_tokens: int) -> Batch | None:
        """A batch of at most `budget_tokens` tokens, padding included, but at least one text."""
        order = sorted(self._requests.values(), key=lambda request: (request.served_tokens, request.number))
        if not order:
            return None
        width = max(order[0].waiting)
        room = max(1, budget_tokens // width)
        texts: list[Text] = []
        for bucket in self._buckets(order, width):
            for request in order:
                taken = self._take(request, bucket, room - len(texts))
                request.served_tokens += width * len(taken)
                texts += taken
            if len(texts) == room:
                break
        return Batch(texts, width)

    def _buckets(self, order: list[_Request], width: int) -> list[int]:
        """Bucket widths that may share a batch of `width`, the widest first."""
        known = {bucket for request in order for bucket in request.waiting}
        return sorted((one for one in known if width // self._max_width_ratio <= one <= width), reverse=True)

    def _take(self, request: _Request, bucket: int, count: int) -> list[Text]:
        waiting = request.waiting.get(bucket)
        if not waiting or count <= 0:
            return []
        taken, left = waiting[:count], waiting[count:]
        if left:
            request.waiting[bucket] = left
        else:
            del request.waiting[bucket]
        if not request.waiting:
            del self._requests[request.message.sequence]
        return taken


def bucket_width(length: int) -> int:
    """Rounds the length up: to multiples of 8 up to 64, then to four widths per doubling."""
    step = max(8, 2 ** (length - 1).bit_length() // 8)
    return -(-length // step) * step
