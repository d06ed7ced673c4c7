"""Matches stop strings in text, also across tokens or chunks, and sends no part of them."""

from mlx_manager.mlx_server.parsers.source import possible_beginning


class StopStringParser:
    """`feed(text) -> text` returns text to send, or "" once `matched` is set; `flush` returns the held text.

    The stop string that is complete first wins, so the answer does not depend on how the text is split. With
    `include`, the text includes the stop string.
    """

    def __init__(self, stops: tuple[str, ...], include: bool = False) -> None:
        self.matched: str | None = None
        self._include = include
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> str:
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.matched = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            self._held = ""
            return text[: at + len(self.matched)] if self._include else text[:at]
        held = self._possible_beginning(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest suffix of `text` that begins a stop string."""
        return possible_beginning(text, self._stops)
