"""Log formats: text for terminals, JSON for log collectors."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from opentelemetry import trace

from mlx_manager.mlx_server.records import Exchange

_NOISY = ("httpx", "asyncio")

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def configure_logging(level: str, log_format: Literal["human", "json"]) -> None:
    """Called by the command line only. A program that embeds the app configures logging itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else HumanFormatter())
    logging.basicConfig(handlers=[handler])
    logging.captureWarnings(True)
    set_log_level(level)


def set_log_level(level: str) -> None:
    logging.getLogger().setLevel(level)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))


@contextlib.contextmanager
def request_log_context(exchange: Exchange) -> Iterator[None]:
    """Adds the request id to log lines of the block and of tasks started in it, until the exchange ends."""
    token = _current.set(exchange)
    try:
        yield
    finally:
        _current.reset(token)


class HumanFormatter(logging.Formatter):
    """Writes each message on one line. Indents tracebacks, so that their lines cannot imitate log lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _printable(record.message.rstrip("\n"))
        return super().formatMessage(record)

    def formatException(self, ei: _ExcInfo) -> str:
        text = super().formatException(ei)
        return "\n".join(f"    {_printable(line)}" for line in text.splitlines())


class JsonFormatter(logging.Formatter):
    """Writes one JSON object per line, including the fields from `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        exchange, span = _current.get(), trace.get_current_span().get_span_context()
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if exchange is not None and exchange.ended is None:
            line["request_id"] = exchange.request_id
        if span.trace_flags.sampled:
            line |= {"trace_id": trace.format_trace_id(span.trace_id), "span_id": trace.format_span_id(span.span_id)}
        line |= getattr(record, "fields", {})
        if record.exc_info is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _printable(text: str) -> str:
    """Escapes line breaks, terminal sequences and other unprintable characters: messages may contain client text."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
