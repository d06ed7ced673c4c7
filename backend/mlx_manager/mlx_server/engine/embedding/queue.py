"""The texts that wait to be encoded, and which of them make the next batch. Imports no MLX.

Requests take turns by the tokens that they have had: a short one waits for one batch at most, however many texts
another has sent. The texts of a batch are about equally long, so that little of it is padding.
"""

import itertools
from array import array
from collections import defaultdict
from dataclasses import dataclass, field

from mlx_manager.mlx_server.engine.messages import Encode

TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """`place` is the one that its vector has among the request's."""

    request: "_Request"
    place: int
    tokens: "array[int]"
    second_at: int


@dataclass(frozen=True, slots=True)
class Batch:
    """`width` is the length to which its texts are padded."""

    texts: list[Text]
    width: int


@dataclass(slots=True, eq=False)
class _Request:
    message: Encode
    number: int
    added_at: float
    served_tokens: int
    """Padding included; it starts at what the others have had least."""
    waiting: dict[int, list[Text]] = field(default_factory=lambda: defaultdict(list))
    """Texts by the width of their bucket."""
    begun: bool = False


class TextQueue:
    """`widest_waste` is by how much a batch may be wider than its texts: 1 fills it from one bucket alone."""

    def __init__(self, widest_waste: int) -> None:
        self._widest_waste = widest_waste
        self._requests: dict[int, _Request] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def texts(self) -> int:
        """That wait."""
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
        """Of as many tokens as the budget allows, padding included, but one text at least."""
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
        """Widths of the texts that may go into a batch of that width, the widest first."""
        known = {bucket for request in order for bucket in request.waiting}
        return sorted((one for one in known if width // self._widest_waste <= one <= width), reverse=True)

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
    """The length that texts of about this one share: multiples of 8, and four for each doubling beyond 32."""
    step = max(8, 2 ** (length - 1).bit_length() // 8)
    return -(-length // step) * step
