"""Models and figures in the page: load, unload, pin, download, memory and the last requests."""

import re
from pathlib import Path
from typing import Any

import pytest

from mlx_manager.demo import demo_model_path
from tests.command_line.hub import REPO, running_hub
from tests.running_server import RunningServer, running_server


def wait_for_state(tab: Any, model: str, state: str) -> None:
    row = tab.page.locator("#model-rows tr", has=tab.page.locator("th", has_text=model))
    row.locator(".state", has_text=re.compile(f"^{state}$")).wait_for()


def test_a_model_is_unloaded_and_loaded_and_pinned(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served, "models")
    tab.page.get_by_role("button", name="Unload demo").click()
    wait_for_state(tab, "demo", "unloaded")
    tab.page.get_by_role("button", name="Load demo").click()
    wait_for_state(tab, "demo", "loaded")
    tab.page.get_by_role("button", name="Pin demo").click()
    wait_for_state(tab, "demo", "loaded, pinned")
    assert tab.page.evaluate("document.activeElement.ariaLabel").endswith(" demo")  # the focus stays in the row
    tab.page.get_by_role("button", name="Unpin demo").click()
    wait_for_state(tab, "demo", "loaded")
    caption = tab.page.locator("#memory figcaption").inner_text()
    assert caption.startswith("Memory budget: ")
    assert tab.page.locator("#memory li").all_inner_texts()[0].startswith("weights ")


def test_a_model_is_downloaded_with_its_progress(tabs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("config.json", "chat_template.jinja", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    files = {name: (demo_model_path() / name).read_bytes() for name in names}
    with running_hub(files) as hub:
        for name, value in {"ENDPOINT": hub.url, "HOME": str(tmp_path / "hub"), "HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(f"HF_{name}", value)
        hub.stall_at = 4 * 2**20
        with running_server(tmp_path, allow_downloads="true") as server:
            tab = tabs(server, "models")
            tab.page.fill("#repo", REPO)
            tab.page.locator("#download").get_by_role("button").click()
            progress = f"[data-progress='{REPO}']"
            tab.page.locator(progress, has_text=re.compile(r"downloading \d+ kB of \d\.\d MB")).wait_for()
            assert 0 < tab.page.locator(f"{progress} progress").evaluate("(bar) => bar.position") < 1
            hub.stall_at = None
            hub.closing.set()
            wait_for_state(tab, REPO, "loaded")


def test_a_download_that_the_settings_forbid_is_refused_with_the_setting(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served, "models")
    tab.page.fill("#repo", "org/unknown")
    tab.page.locator("#download").get_by_role("button").click()
    tab.page.locator("#notice", has_text="MLX_SERVER_AVAILABLE_MODELS").wait_for()


def test_the_last_requests_and_the_figures_are_live(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served, "live")
    before = tab.page.locator("#request-rows tr").count()
    served.chat("Count to 7")
    tab.page.wait_for_function("(count) => document.querySelectorAll('#request-rows tr').length > count", arg=before)
    cells = tab.page.locator("#request-rows tr").first.locator("td").all_inner_texts()
    assert cells[1:3] == ["200", "demo"]
    assert int(cells[3]) > 0
    figures = dict(zip(*(tab.page.locator(f"#figures {kind}").all_inner_texts() for kind in ("dt", "dd")), strict=True))
    assert figures["First token, p50"].endswith("s")
    assert figures["Memory"].endswith("GB")
    label = tab.page.locator("#charts svg").last.get_attribute("aria-label")
    assert label.startswith("Memory over the last ")


def test_set_ups_of_every_client_can_be_copied(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served, "connect", permissions=["clipboard-read", "clipboard-write"])
    clients = tab.page.locator("#client option").all_inner_texts()
    assert len(clients) > 8
    for client in clients:
        tab.page.select_option("#client", client)
        assert served.url in tab.page.locator("#setup").inner_text()
    tab.page.select_option("#client", "claude")
    tab.page.get_by_role("button", name="Copy Run").click()
    tab.page.get_by_text("Copied").first.wait_for()
    assert f"export ANTHROPIC_BASE_URL={served.url}" in tab.page.evaluate("navigator.clipboard.readText()")
