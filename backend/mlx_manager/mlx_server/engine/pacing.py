"""How long prompts may hold up the running streams: chunks sized from what prompt tokens were measured to cost.

Knows seconds and counts of tokens alone.
"""

SMALLEST_CHUNK = 32
LARGEST_CHUNK = 2048
FIRST_CHUNK = 256
"""Before anything was measured."""
ALONE_SECONDS = 0.5
"""How long a chunk may take when nobody is being decoded: a cancel, and a shorter prompt, wait for its end."""
DECODE_SHARE = 0.35
"""Of the time while prompts are taken in, the part that belongs to the running streams."""
MEASURABLE_TOKENS = 24
"""Fewer tokens cost mostly what any forward pass does."""


class Pace:
    """Told of every decode step and prompt chunk, says when the next chunk is due and how many tokens it may have."""

    def __init__(self, target_seconds: float) -> None:
        self._target_seconds = target_seconds
        self._seconds_per_token: float | None = None
        self._owed_seconds = 0.0

    def decoded(self, seconds: float) -> None:
        self._owed_seconds = max(0.0, self._owed_seconds - seconds)

    def prefilled(self, tokens: int, seconds: float, while_decoding: bool) -> None:
        """A chunk of `tokens`, padding included, took `seconds`."""
        if tokens >= MEASURABLE_TOKENS:
            measured = seconds / tokens
            known = self._seconds_per_token
            self._seconds_per_token = measured if known is None else (known + measured) / 2
        self._owed_seconds = self._owed_seconds + self._decode_time_for(seconds) if while_decoding else 0.0

    def chunk_is_due(self) -> bool:
        """One chunk's debt may be left open, so that a burst of short prompts is taken in at once."""
        return self._owed_seconds <= self._decode_time_for(self._target_seconds)

    def chunk_tokens(self, while_decoding: bool) -> int:
        if self._seconds_per_token is None:
            return FIRST_CHUNK
        seconds = self._target_seconds if while_decoding else max(self._target_seconds, ALONE_SECONDS)
        return min(max(int(seconds / self._seconds_per_token), SMALLEST_CHUNK), LARGEST_CHUNK)

    @staticmethod
    def _decode_time_for(prefill_seconds: float) -> float:
        return prefill_seconds * DECODE_SHARE / (1 - DECODE_SHARE)
