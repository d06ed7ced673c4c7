"""Computes the memory of the KV caches of running sequences. Knows counts and bytes, and no arrays."""

from dataclasses import dataclass

from mlx_manager.mlx_server.engine.plan import ModelFacts

SAFETY_FACTOR = 1.25
"""Caches that grow or join are copied, a layer or two at a time."""


@dataclass(frozen=True, slots=True)
class KvMemory:
    """Every row of a batch takes the memory of the longest, because mlx-lm pads the others."""

    bytes_per_token: int
    bytes_per_row: int
    growth_tokens: int
    limit_bytes: int

    @classmethod
    def of(cls, facts: ModelFacts, limit_bytes: int) -> "KvMemory":
        return cls(facts.bytes_per_token, facts.bytes_per_row, facts.growth_tokens, limit_bytes)

    def needed(self, rows: int, longest: int) -> int:
        """Bytes for `rows` rows when the longest has `longest` tokens."""
        padded = -(-longest // self.growth_tokens) * self.growth_tokens
        return int(SAFETY_FACTOR * rows * (self.bytes_per_row + padded * self.bytes_per_token))

    @property
    def largest_sequence_tokens(self) -> int:
        """The longest sequence, prompt and answer, that fits when it runs alone."""
        if not self.bytes_per_token:
            return 2**31
        tokens = (self.limit_bytes / SAFETY_FACTOR - self.bytes_per_row) / self.bytes_per_token
        return max(0, int(tokens) // self.growth_tokens * self.growth_tokens)

    def fits(self, rows: int, longest: int) -> bool:
        return self.needed(rows, longest) <= self.limit_bytes
