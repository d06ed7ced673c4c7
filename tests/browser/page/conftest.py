"""A headless Chromium with the page of a real server in it. Each test ends with a check that the page broke no rule."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.running_server import RunningServer, running_server

playwright = pytest.importorskip("playwright.sync_api", reason="make test-page installs playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT_MILLISECONDS = 60_000
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => {
  violations.push(`${violatedDirective} ${blockedURI}`);
});
"""


@dataclass
class Tab:
    """A tab with the page open. `page` is playwright's."""

    page: Any
    url: str
    faults: list[str] = field(default_factory=list)
    """Errors of scripts, and requests to other servers."""

    def open(self, view: str = "chat") -> None:
        self.page.goto(f"{self.url}/#{view}")
        self.page.locator(f"#{view}:visible").wait_for()

    def violations(self) -> list[str]:
        found: list[str] = self.page.evaluate("window.violations")
        return found

    def choose(self, model: str) -> None:
        self.page.locator("#model").select_option(model)

    def send(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def answer(self) -> Any:
        """The last message, when it is complete."""
        last = self.page.locator("#messages > li.assistant").last
        last.locator("button:text-is('Regenerate')").wait_for()
        return last

    def ask(self, text: str) -> str:
        self.send(text)
        content: str = self.answer().locator(".rich").inner_text()
        return content.strip()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("there is no Chromium here (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def tabs(chromium: Any) -> Iterator[Any]:
    """Opens tabs of servers, each in a browser profile of its own."""
    opened: list[Tab] = []

    def open_tab(server: RunningServer, view: str = "chat", **options: Any) -> Tab:
        context = chromium.new_context(**{"viewport": {"width": 1100, "height": 760}, **options})
        context.set_default_timeout(WAIT_MILLISECONDS)
        context.add_init_script(WATCH)
        tab = Tab(context.new_page(), server.url)
        tab.page.on("pageerror", lambda error: tab.faults.append(f"{error} {error.stack}"))
        tab.page.on("request", lambda request: None if _is_ours(request.url, tab) else tab.faults.append(request.url))
        opened.append(tab)
        tab.open(view)
        return tab

    yield open_tab
    for tab in opened:
        assert (tab.violations(), tab.faults) == ([], [])
        tab.page.context.close()


def _is_ours(url: str, tab: Tab) -> bool:
    return url.startswith((f"{tab.url}/", "data:image/svg+xml"))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, babbler: Path) -> Iterator[RunningServer]:
    """A server whose models tests may load and unload, with `demo` and `babbler`."""
    with running_server(tmp_path_factory.mktemp("served"), available_models=str(babbler)) as server:
        yield server


def tool(name: str, **properties: str) -> str:
    """The JSON of the further fields of a request that offers this tool."""
    parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return json.dumps({"tools": [{"type": "function", "function": {"name": name, "parameters": parameters}}]})
