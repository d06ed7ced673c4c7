"""What a web page of another origin can do to the server, with a page that tries, in headless Chromium."""

import contextlib
import json
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running_server import RunningServer, eventually, running_server

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = Path(__file__).with_name("foreign_page.html")
PATHS = ("/admin/models/demo/pin", "/admin/models/demo/unload", "/admin/reload", "/v1/chat/completions")
SIMPLE_POSTS = 8
"""To each path: three forms, four fetches that need no preflight, and a beacon."""
BROWSER_SECONDS = 120

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (apt-get install chromium)")


@contextlib.contextmanager
def site(server: RunningServer) -> Iterator[tuple[str, "queue.Queue[dict[str, Any]]"]]:
    """A web site on a port of its own with the page that attacks `server`, and what the page reports."""
    reports: queue.Queue[dict[str, Any]] = queue.Queue()
    page = PAGE.read_text("utf-8").replace("SERVER", server.url).encode()

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(page if self.path == "/" else b"")

        def do_POST(self) -> None:
            reports.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._answer(b"")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as pages:
        threading.Thread(target=pages.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{pages.server_port}", reports
        finally:
            pages.shutdown()


def visit(url: str, reports: "queue.Queue[dict[str, Any]]", profile: Path) -> dict[str, Any]:
    """What the page reports when all its requests have been answered."""
    assert BROWSER is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [BROWSER, *options, f"--user-data-dir={profile}", url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            return reports.get(timeout=BROWSER_SECONDS)
        finally:
            browser.terminate()


def state_of(server: RunningServer) -> tuple[bool, int, int]:
    """Whether `demo` is pinned, its worker, and how many tokens the server has generated."""
    models = httpx.get(f"{server.url}/admin/pool").json()["models"]
    demo = next(model for model in models if model["id"] == "demo")
    metrics = httpx.get(f"{server.url}/metrics").text
    tokens = re.findall(r"^\w*token\w*_(?:total|sum|count)\{.*\} (\S+)$", metrics, re.MULTILINE)
    return demo["pinned"], demo["pid"], sum(int(float(count)) for count in tokens)


def statuses(server: RunningServer, path: str) -> list[int]:
    """Those of all POST requests to `path`, as the log has them."""
    return [int(status) for status in re.findall(rf"(\d+) POST {path} ", server.log.read_text())]


def test_a_foreign_page_changes_nothing_and_reads_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, site(server) as (url, reports):
        before = state_of(server)
        seen = visit(url, reports, tmp_path / "profile")
        for path in PATHS:
            answered = eventually(partial(statuses, server, path), lambda found: len(found) == 2 * SIMPLE_POSTS)
            assert set(answered) == {403}
            for results in (seen["page"][path], seen["sandboxed"][path]):
                assert (results["simple"], results["json"]) == ("blocked", "blocked")
        assert state_of(server) == before


def test_the_same_page_gets_its_way_where_the_settings_name_its_origin(tmp_path: Path) -> None:
    """So the page does try."""
    with running_server(tmp_path, cors_origins="http://127.0.0.1:*,null") as server, site(server) as (url, reports):
        seen = visit(url, reports, tmp_path / "profile")
        assert seen["page"][PATHS[0]]["json"] == seen["sandboxed"][PATHS[0]]["json"] == 200
        assert seen["page"][PATHS[3]]["json"] == 200
        assert state_of(server)[0]
