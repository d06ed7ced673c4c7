"""Keys in the page: asked for where the server wants one, kept for the tab, and forgotten."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.running_server import RunningServer, running_server

USER, ADMIN = "sk-user-1", "sk-admin-1"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("keyed"), api_keys=f"anna={USER}", admin_key=ADMIN) as server:
        yield server


def give(tab: Any, title: str, key: str) -> None:
    tab.page.locator("#ask-key-title", has_text=title).wait_for()
    tab.page.fill("#key", key)
    tab.page.keyboard.press("Enter")


def test_a_key_is_asked_for_until_it_is_right_and_kept_for_the_tab(tabs: Any, keyed: RunningServer) -> None:
    tab = tabs(keyed)
    give(tab, "API key", "wrong")
    tab.page.locator("#ask-key-reason", has_text="Unknown API key").wait_for()
    give(tab, "API key", USER)
    tab.page.locator("#model option").first.wait_for(state="attached")
    assert tab.ask("Count to 3")
    tab.page.reload()
    tab.page.locator("#model option").first.wait_for(state="attached")
    assert not tab.page.locator("#ask-key").is_visible()
    assert USER not in tab.page.evaluate("JSON.stringify({ ...localStorage }) + document.cookie + location.href")
    tab.page.get_by_role("button", name="Forget keys").click()
    tab.page.locator("#ask-key-title", has_text="API key").wait_for()


def test_the_admin_key_is_asked_for_where_it_is_needed(tabs: Any, keyed: RunningServer) -> None:
    tab = tabs(keyed)
    give(tab, "API key", USER)
    tab.page.locator("#model option").first.wait_for(state="attached")
    tab.open("models")
    tab.page.locator("#ask-key-title", has_text="Admin key").wait_for()
    tab.page.get_by_role("button", name="Cancel").click()
    tab.page.locator("#model-rows tr", has_text="demo").wait_for()
    assert tab.page.get_by_role("button", name="Unload demo").count() == 0
    tab.open("live")
    give(tab, "Admin key", ADMIN)
    tab.page.locator("#figures dd").first.wait_for()
    tab.open("models")
    tab.page.get_by_role("button", name="Unload demo").wait_for()


def test_set_ups_have_a_stand_in_for_the_key(tabs: Any, keyed: RunningServer) -> None:
    tab = tabs(keyed, "connect")
    give(tab, "API key", USER)
    tab.page.locator("#setup", has_text="YOUR-KEY").wait_for()
    assert USER not in tab.page.content()


def test_without_an_admin_key_in_the_settings_the_page_says_so(
    tabs: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_server(tmp_path_factory.mktemp("users"), api_keys=USER) as server:
        tab = tabs(server, "live")
        tab.page.locator("#ask-key").or_(tab.page.locator("#notice", has_text="MLX_SERVER_ADMIN_KEY")).first.wait_for()
        if tab.page.locator("#ask-key").is_visible():
            give(tab, "key", USER)
        tab.page.locator("#notice", has_text="MLX_SERVER_ADMIN_KEY").wait_for()
