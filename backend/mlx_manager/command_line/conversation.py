"""A conversation over `/v1/chat/completions`: its messages and streamed answers."""

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from mlx_manager.command_line.connection import Server
from mlx_manager.command_line.console import CommandFailed

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: text, reasoning, or the finish reason."""

    kind: Literal["text", "reasoning", "end"]
    text: str


@dataclass(slots=True)
class Conversation:
    model: str
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        return opening + self.turns

    def ask(self, server: Server, text: str) -> Generator[Piece]:
        """Streams the answer and adds it to the messages, also if the caller stops early. A question without any answer
        is removed. Raises CommandFailed."""
        question = {"role": "user", "content": text}
        answer: list[str] = []
        try:
            for piece in stream_answer(server, self.model, [*self.messages, question]):
                if piece.kind == "text":
                    answer.append(piece.text)
                yield piece
        finally:
            if answer:
                self.turns += [question, {"role": "assistant", "content": "".join(answer)}]


def stream_answer(server: Server, model: str, messages: list[Message]) -> Iterator[Piece]:
    body: dict[str, object] = {"model": model, "messages": messages, "stream": True}
    with server.post_stream("/v1/chat/completions", body) as response:
        for chunk in read_chunks(response):
            for choice in chunk.get("choices", ()):
                yield from _pieces(choice)


def read_chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The chunks of an SSE stream up to its [DONE]. Raises CommandFailed on an error event, or without [DONE]."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        payload = line.removeprefix("data:").strip()
        if payload == "[DONE]":
            return
        yield _chunk(payload)
    raise CommandFailed("The server ended its answer early. Check its log.")


def _chunk(payload: str) -> dict[str, Any]:
    try:
        chunk = json.loads(payload)
    except ValueError as exc:
        raise CommandFailed(f"The server sent invalid JSON: {payload[:200]!r}. Check its log.") from exc
    if not isinstance(chunk, dict):
        raise CommandFailed(f"The server sent an invalid chunk: {payload[:200]!r}. Check its log.")
    if "error" in chunk:
        error = chunk["error"]
        raise CommandFailed(str(error.get("message", error) if isinstance(error, dict) else error))
    return chunk


def _pieces(choice: dict[str, Any]) -> Iterator[Piece]:
    delta = choice.get("delta", {})
    reasoning = delta.get("reasoning_content") or delta.get("reasoning")
    if reasoning:
        yield Piece("reasoning", reasoning)
    if delta.get("content"):
        yield Piece("text", delta["content"])
    if choice.get("finish_reason") is not None:
        yield Piece("end", choice["finish_reason"])
