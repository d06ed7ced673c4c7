"""Limits how long prefill delays running streams: sizes chunks by the measured cost of prompt tokens.

Knows only seconds and token counts.
"""

SMALLEST_CHUNK = 32
LARGEST_CHUNK = 2048
FIRST_CHUNK = 256
"""Chunk size before the first measurement."""
ALONE_SECONDS = 0.5
"""Target duration of a chunk while nothing is decoded. Cancels and shorter prompts wait for its end."""
DECODE_SHARE = 0.42
"""Share of the time that decoding gets while prompts are prefilled."""
MEASURABLE_TOKENS = 24
"""The time of smaller chunks is mostly the fixed cost of a forward pass."""


class Pace:
    """Decides when the next chunk is due and its size, from the durations of all decode steps and chunks."""

    def __init__(self, target_seconds: float) -> None:
        self._target_seconds = target_seconds
        self.seconds_per_token: float | None = None
        """Of prefill; None before it is measured."""
        self._owed_seconds = 0.0

    def decoded(self, seconds: float) -> None:
        self._owed_seconds = max(0.0, self._owed_seconds - seconds)

    def prefilled(self, tokens: int, seconds: float, while_decoding: bool) -> None:
        """Records that a chunk of `tokens`, padding included, took `seconds`."""
        if tokens >= MEASURABLE_TOKENS:
            measured = seconds / tokens
            known = self.seconds_per_token
            self.seconds_per_token = measured if known is None else (known + measured) / 2
        self._owed_seconds = self._owed_seconds + self._decode_time_for(seconds) if while_decoding else 0.0

    def chunk_is_due(self) -> bool:
        """Allows the debt of one chunk, so that a burst of short prompts is prefilled without delay."""
        return self._owed_seconds <= self._decode_time_for(self._target_seconds)

    def chunk_tokens(self, while_decoding: bool) -> int:
        if self.seconds_per_token is None:
            return FIRST_CHUNK
        seconds = self._target_seconds if while_decoding else max(self._target_seconds, ALONE_SECONDS)
        return min(max(int(seconds / self.seconds_per_token), SMALLEST_CHUNK), LARGEST_CHUNK)

    @staticmethod
    def _decode_time_for(prefill_seconds: float) -> float:
        return prefill_seconds * DECODE_SHARE / (1 - DECODE_SHARE)
