"""axe-core on each view, in both themes, and the pictures of the page in the docs."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.browser.page.conftest import tool
from tests.running_server import RunningServer

axe_package = pytest.importorskip("axe_playwright_python", reason="make test-page installs axe-playwright-python")
AXE = (Path(axe_package.__file__).parent / "axe.min.js").read_text("utf-8")
DOCS = Path(__file__).parents[3] / "docs"
PHONE = {"width": 380, "height": 740}
MAX_PICTURE_BYTES = 200_000


def faults(tab: Any) -> list[str]:
    """The serious and critical faults that axe finds, each with its element."""
    tab.page.evaluate(AXE)
    found = tab.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in serious]


def fill(tab: Any, view: str) -> None:
    """Gives the view something of everything that it can show."""
    if view != "chat":
        tab.page.wait_for_timeout(2500)
        return
    tab.choose("demo")
    tab.page.locator("#parameters summary").click()
    tab.page.fill("[name=temperature]", "0")
    tab.ask("Count to 5")
    tab.page.fill("[name=more]", tool("get_weather", city="string"))
    tab.send("What is the weather in Paris?")
    tab.page.locator(".call").wait_for()
    tab.answer()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", ["chat", "models", "live", "connect"])
def test_axe_finds_no_serious_fault(tabs: Any, served: RunningServer, view: str, theme: str) -> None:
    tab = tabs(served, view, color_scheme=theme)
    fill(tab, view)
    assert faults(tab) == []


def test_axe_finds_a_serious_fault_where_there_is_one(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served)
    tab.page.evaluate("document.querySelector('#prompt').labels[0].remove()")
    tab.page.evaluate("document.querySelector('#prompt').removeAttribute('placeholder')")
    assert any(fault.startswith("label:") for fault in faults(tab))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_can_be_chosen_against_the_system_and_is_kept(tabs: Any, served: RunningServer, theme: str) -> None:
    other = {"light": "dark", "dark": "light"}[theme]
    tab = tabs(served, color_scheme=theme)
    colour = "getComputedStyle(document.body).backgroundColor"
    by_system = tab.page.evaluate(colour)
    tab.page.select_option("#theme", other)
    assert tab.page.evaluate(colour) != by_system
    tab.page.reload()
    tab.page.locator("#chat").wait_for()
    assert tab.page.evaluate(colour) != by_system
    assert faults(tab) == []


@pytest.mark.parametrize("view", ["chat", "models", "live", "connect"])
def test_nothing_is_cut_off_on_a_phone(tabs: Any, served: RunningServer, view: str) -> None:
    tab = tabs(served, view, viewport=PHONE, has_touch=True)
    fill(tab, view)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert faults(tab) == []


def test_the_pictures_of_the_docs_are_made(tabs: Any, served: RunningServer, tmp_path: Path) -> None:
    """`make test-page PICTURES=1` renews those in docs/."""
    folder = DOCS if os.environ.get("PICTURES") else tmp_path
    chat = tabs(served)
    fill(chat, "chat")
    chat.page.locator("#parameters summary").click()
    chat.page.evaluate("scrollTo(0, 0)")
    chat.page.screenshot(path=folder / "page-chat.png")
    live = tabs(served, "live", color_scheme="dark")
    for number in range(3, 9):
        served.chat(f"Count to {number}")
    live.page.locator("#request-rows tr").nth(5).wait_for()
    live.page.wait_for_timeout(2000)
    live.page.screenshot(path=folder / "page-live.png")
    for name in ("page-chat.png", "page-live.png"):
        for file in (folder / name, DOCS / name):
            assert 10_000 < file.stat().st_size < MAX_PICTURE_BYTES
