"""Sends the requests of a soak and records their outcomes."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from benchmarks.soak.traffic import Json, Planned

HUNG_SECONDS = 45.0
"""A request without data for this long counts as hung: the server's own limits are lower."""
KEEP_ALIVE_SECONDS = 1.0
"""Well below the server's, so that no request uses a connection that the server is closing."""

EXCERPT_CHARACTERS = 300

End = Literal["answered", "refused", "error event", "left", "cut", "hung", "wrong"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`at_seconds` is the send time from the start of the soak; `code` is the error code."""

    kind: str
    model: str
    wanted_status: int
    at_seconds: float
    seconds: float
    end: End
    status: int | None = None
    code: str | None = None
    ttft_seconds: float | None = None
    detail: str = ""
    request: str = ""

    @property
    def until_seconds(self) -> float:
        return self.at_seconds + self.seconds


class WrongAnswer(Exception):
    """The status is right, but the content is wrong."""


class _ErrorEvent(Exception):
    def __init__(self, error: Json) -> None:
        super().__init__(str(error.get("message")))
        self.code = str(error.get("code"))


class SoakClient:
    """All clients of a soak, on one connection pool. The caller closes it."""

    def __init__(self, base_url: str, started: float, hung_seconds: float = HUNG_SECONDS) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50, keepalive_expiry=KEEP_ALIVE_SECONDS)
        self._http = httpx.AsyncClient(base_url=base_url, timeout=None, limits=limits)
        self._started = started
        self._hung_seconds = hung_seconds

    async def aclose(self) -> None:
        await self._http.aclose()

    async def send(self, planned: Planned) -> Outcome:
        """Sends the request. Never raises for the server's behaviour."""
        reading = _Reading(planned, time.monotonic())
        end: End
        detail = ""
        try:
            async with asyncio.timeout(planned.leaves_after_seconds):
                end = await self._ask(planned, reading)
        except TimeoutError as exc:
            end, detail = ("hung", str(exc)) if isinstance(exc, _Hung) else ("left", "")
        except _ErrorEvent as exc:
            end, reading.code, detail = "error event", exc.code, str(exc)
        except WrongAnswer as exc:
            end, detail = "wrong", str(exc)
        except (httpx.TransportError, ValueError) as exc:
            end, detail = "cut", repr(exc)
        return reading.outcome(end, detail or reading.detail, self._started)

    async def _ask(self, planned: Planned, reading: "_Reading") -> End:
        headers = {"Content-Type": "application/json"}
        request = self._http.build_request("POST", planned.path, content=planned.content, headers=headers)
        response = await self._in_time(self._http.send(request, stream=True))
        try:
            reading.status = response.status_code
            if response.status_code != 200 or not planned.stream:
                body = json.loads(await self._in_time(response.aread()))
                return reading.read_body(body)
            await self._read_stream(response, reading)
            return "answered"
        finally:
            await response.aclose()

    async def _read_stream(self, response: httpx.Response, reading: "_Reading") -> None:
        """Reads to [DONE]. Raises WrongAnswer if the stream ends without it."""
        lines = response.aiter_lines()
        while (line := await self._in_time(anext(lines, None))) is not None:
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                await reading.read_chunk(json.loads(line[6:]))
        raise WrongAnswer("the stream ended with neither [DONE] nor an error event")

    async def _in_time(self, work: Any) -> Any:
        try:
            return await asyncio.wait_for(work, self._hung_seconds)
        except TimeoutError as exc:
            raise _Hung(f"nothing came for {self._hung_seconds:g} s") from exc


class _Hung(TimeoutError):
    pass


class _Reading:
    """State of a running request."""

    def __init__(self, planned: Planned, sent: float) -> None:
        self.status: int | None = None
        self.code: str | None = None
        self.detail = ""
        self._planned = planned
        self._sent = sent
        self._ttft: float | None = None

    def read_body(self, body: Json) -> End:
        if "error" in body:
            self.code, self.detail = str(body["error"]["code"]), str(body["error"]["message"])
            return "refused"
        _check_answer(self._planned, body)
        return "answered"

    async def read_chunk(self, chunk: Json) -> None:
        if "error" in chunk:
            raise _ErrorEvent(chunk["error"])
        self._ttft = self._ttft if self._ttft is not None else time.monotonic() - self._sent
        await asyncio.sleep(self._planned.pause_seconds)

    def outcome(self, end: End, detail: str, started: float) -> Outcome:
        return Outcome(
            self._planned.kind,
            self._planned.model,
            self._planned.status,
            at_seconds=self._sent - started,
            seconds=time.monotonic() - self._sent,
            end=end,
            status=self.status,
            code=self.code,
            ttft_seconds=self._ttft,
            detail=detail[:EXCERPT_CHARACTERS],
            request=self._planned.content[:EXCERPT_CHARACTERS].decode("utf-8", "replace"),
        )


def _check_answer(planned: Planned, body: Json) -> None:
    choices = body.get("choices")
    if not choices or any(choice.get("finish_reason") is None for choice in choices):
        raise WrongAnswer(f"an answer without choices that ended: {str(body)[:200]}")
    for choice in choices if planned.json_answer else ():
        if choice["finish_reason"] == "stop" and not _parses(choice["message"]["content"]):
            raise WrongAnswer(f"content that breaks its schema: {choice['message']['content']!r}")


def _parses(content: str) -> bool:
    try:
        return set(json.loads(content)) == {"name", "age"}
    except ValueError:
        return False
