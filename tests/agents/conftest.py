"""`--agents-table FILE` rewrites the table of clients in a page with what the session saw of each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.table import Table, write_table


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--agents-table", type=Path, help="the page whose table of clients this session rewrites")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "seen(check, client): what the test shows; `client` else comes from `name`")
    page = config.getoption("--agents-table")
    if page is not None and not hasattr(config, "workerinput"):  # pytest-xdist's workers report to the first process
        config.pluginmanager.register(_Writer(page))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    marker = item.get_closest_marker("seen")
    if marker is not None:
        client = marker.kwargs["client"] if "client" in marker.kwargs else item.callspec.params["name"]
        report.user_properties.append(("seen", [client, marker.args[0]]))
    return report  # type: ignore[return-value]


class _Writer:
    def __init__(self, page: Path) -> None:
        self._page = page
        self._table: Table = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seen = dict(report.user_properties).get("seen")
        if isinstance(seen, list) and (report.when == "call" or report.outcome != "passed"):
            client, check = seen
            reason = getattr(report, "wasxfail", None)
            outcome = report.outcome if reason is None else f"no: {reason.removeprefix('reason: ')}"
            self._table.setdefault((client, check), []).append(outcome)

    def pytest_sessionfinish(self) -> None:
        write_table(self._page, self._table)
