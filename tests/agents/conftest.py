"""`--agents-table FILE` rewrites the table of clients in a page with what the session saw of each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.table import Table, write_table

_TABLE: pytest.StashKey[Table] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--agents-table", type=Path, help="the page whose table of clients this session rewrites")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "seen(check, client): what the test shows; `client` else comes from `name`")
    config.stash[_TABLE] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    marker = item.get_closest_marker("seen")
    if marker is not None and (report.when == "call" or report.outcome != "passed"):
        client = str(marker.kwargs["client"] if "client" in marker.kwargs else item.callspec.params["name"])
        item.config.stash[_TABLE].setdefault((client, str(marker.args[0])), []).append(report.outcome)
    return report  # type: ignore[return-value]


def pytest_sessionfinish(session: pytest.Session) -> None:
    page = session.config.getoption("--agents-table")
    if page is not None:
        write_table(page, session.config.stash[_TABLE])
