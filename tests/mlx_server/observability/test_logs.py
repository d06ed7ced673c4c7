"""How lines look: one event is one line, whatever is in it."""

import json
import logging
import sys
from datetime import UTC, datetime

import pytest

from mlx_manager.mlx_server.observability.logs import HumanFormatter, JsonFormatter, request_log_context
from mlx_manager.mlx_server.records import Exchange

FORGED = "all well\n2026-01-01 00:00:00,000 INFO    forged: \x1b[31mline\r\u2028\u202e\ud800"


def record(message: str, *, failed: bool = False, **fields: object) -> logging.LogRecord:
    exc_info = sys.exc_info() if failed else None
    made = logging.LogRecord("a.logger", logging.WARNING, __file__, 1, "about %s", (message,), exc_info)
    if fields:
        made.fields = fields
    return made


def failed_record(error: Exception) -> logging.LogRecord:
    try:
        raise error
    except Exception:
        return record("it", failed=True)


@pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()])
def test_a_message_cannot_forge_lines_nor_reach_the_terminal(formatter: logging.Formatter) -> None:
    line = formatter.format(record(FORGED))
    assert line.isprintable()
    assert "all well\\n2026" in line


def test_people_read_letters_of_all_scripts_as_they_are() -> None:
    assert HumanFormatter().format(record("größer 你好 🙂")).endswith(" WARNING a.logger: about größer 你好 🙂")


def test_no_line_of_a_traceback_looks_like_an_event() -> None:
    first, *others = HumanFormatter().format(failed_record(ValueError(FORGED))).split("\n")
    assert first.endswith("about it")
    assert len(others) > 3
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_json_says_when_and_what_failed() -> None:
    line = json.loads(JsonFormatter().format(failed_record(ValueError(FORGED))))
    written = datetime.fromisoformat(line["timestamp"])
    assert written.tzinfo == UTC
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "a.logger", "about it")
    assert f"ValueError: {FORGED}" in line["exception"]


def test_json_has_the_fields_of_the_call() -> None:
    line = json.loads(JsonFormatter().format(record("it", status=200, seconds=0.5)))
    assert (line["status"], line["seconds"]) == (200, 0.5)
    assert "request_id" not in line


def test_lines_carry_their_requests_id_until_it_ends() -> None:
    """A worker that a request had started goes on to be heard of in the request's context."""
    exchange = Exchange("id-1", "GET", "/")
    with request_log_context(exchange):
        assert json.loads(JsonFormatter().format(record("it")))["request_id"] == "id-1"
        exchange.ended = exchange.began
        assert "request_id" not in json.loads(JsonFormatter().format(record("it")))
