"""Computes the memory of the KV caches of running sequences. Knows counts and bytes, and no arrays."""

from collections.abc import Iterable
from dataclasses import dataclass

from mlx_manager.mlx_server.engine.plan import ModelFacts
from mlx_manager.mlx_server.engine.shapes import GROWTH_TOKENS, grown

COPIED_LAYERS = 2
"""A cache that grows or moves is copied, so many layers at a time..."""
MAX_COPIED_SHARE = 0.25
"""...or this part of it, in a model with few layers."""


@dataclass(frozen=True, slots=True)
class KvMemory:
    """A cache is a number of slots of as many tokens, and a part of fixed size for each row."""

    bytes_per_token: int
    bytes_per_row: int
    growing_layers: int
    limit_bytes: int

    @classmethod
    def of(cls, facts: ModelFacts, limit_bytes: int) -> "KvMemory":
        return cls(facts.bytes_per_token, facts.bytes_per_row, facts.growing_layers, limit_bytes)

    def held(self, rows: int, slots: int, tokens: int) -> int:
        """Bytes of the cache of `rows` rows."""
        return rows * self.bytes_per_row + slots * tokens * self.bytes_per_token

    def with_copies(self, caches: Iterable[int]) -> int:
        """Bytes of all caches, and of copies of the largest while it grows."""
        caches = list(caches)
        return sum(caches) + int(self._copied_share * max(caches, default=0))

    def needed(self, rows: int, longest: int) -> int:
        """Bytes for one cache of `rows` rows when the longest has `longest` tokens."""
        return self.with_copies([self.held(rows, rows, grown(longest))])

    @property
    def largest_sequence_tokens(self) -> int:
        """The longest sequence, prompt and answer, that fits when it runs alone."""
        if not self.bytes_per_token:
            return 2**31
        tokens = (int(self.limit_bytes / (1 + self._copied_share)) - self.bytes_per_row) // self.bytes_per_token
        return max(0, tokens // GROWTH_TOKENS * GROWTH_TOKENS)

    def fits(self, nbytes: int) -> bool:
        return nbytes <= self.limit_bytes

    @property
    def _copied_share(self) -> float:
        return min(MAX_COPIED_SHARE, COPIED_LAYERS / max(1, self.growing_layers))
