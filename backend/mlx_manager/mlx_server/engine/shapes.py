"""The sizes of batches, slots and padded prompts: numbers only, the same for the scheduler and the runner.

On a GPU each new size of a model call costs up to 100 ms, because kernels are planned for it; so sizes come from a
small set. On a CPU padding costs more than a new size, and sizes are what is needed.
"""

from bisect import bisect_left
from dataclasses import dataclass

MAX_PREFILL_ROWS = 16
GROWTH_TOKENS = 256
"""Slots grow in steps of this many tokens, as mlx-lm's caches do."""

_SLOTS = (1, 2, 4, 8, 16, 32, 64)
_CLOSE_SLOTS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
_PREFILL_ROWS = (1, 4, MAX_PREFILL_ROWS)
_QUERIES = (32, 64, 128, 256, 512, 1024, 2048)
_FIRST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Shapes:
    """`repeat`: sizes come from a small set."""

    repeat: bool

    def slots(self, rows: int) -> int:
        """Slots of a decode batch, with room for more rows: a batch that grows by one row is not copied each time."""
        return _at_least(rows, _SLOTS if self.repeat else _CLOSE_SLOTS)

    def prefill_rows(self, rows: int) -> int:
        return _at_least(rows, _PREFILL_ROWS) if self.repeat else rows

    def tokens(self, tokens: int) -> int:
        """Tokens of a slot: powers of two from 1,024 on, or steps of GROWTH_TOKENS."""
        if not self.repeat:
            return grown(tokens)
        return max(_FIRST_TOKENS, 1 << (tokens - 1).bit_length())

    def queries(self, tokens: int) -> int:
        """Tokens of a prompt in a chunk, padded."""
        return _at_least(tokens, _QUERIES) if self.repeat else tokens

    def whole_queries(self, tokens: int) -> int:
        """The largest number of tokens, of at most `tokens`, that needs no padding."""
        if not self.repeat or tokens < _QUERIES[0]:
            return tokens
        return max(size for size in _QUERIES if size <= tokens)


def grown(tokens: int) -> int:
    """`tokens` rounded up to steps of GROWTH_TOKENS."""
    return -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS


def _at_least(number: int, sizes: tuple[int, ...]) -> int:
    place = bisect_left(sizes, number)
    return sizes[place] if place < len(sizes) else number
