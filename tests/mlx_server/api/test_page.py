"""The page over HTTP: who gets it, its headers, and the endpoints that only it uses. tests/browser/page opens it."""

import hashlib
import json
import re
import shlex
import signal
from collections.abc import Generator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_manager import web
from mlx_manager.command_line.clients import CLIENTS
from tests.mlx_server.api.conftest import ADMIN, ANNA
from tests.running_server import HANG_SECONDS, RunningServer, eventually, running_server

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FOLDER = Path(web.__file__).parent


def get(server: RunningServer, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", headers=headers, timeout=HANG_SECONDS)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def frames(server: RunningServer, count: int, **headers: str) -> Generator[dict[str, Any], None, None]:
    with httpx.stream("GET", f"{server.url}/admin/live", headers=headers, timeout=HANG_SECONDS) as response:
        assert response.status_code == 200, response.read()
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        yield from (json.loads(line.removeprefix("data: ")) for line in islice(lines, count))


def test_browsers_get_the_page_and_api_clients_the_error_of_an_unknown_path(server: RunningServer) -> None:
    assert get(server, "/", **BROWSER).headers["content-type"].startswith("text/html")
    for accept in ("*/*", "application/json", ""):
        refused = get(server, "/", accept=accept)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    assert httpx.post(f"{server.url}/", headers=BROWSER).json()["error"]["code"] == "not_found"
    assert get(server, "/ui").content == get(server, "/", **BROWSER).content
    assert get(server, "/ui/").headers["location"] == "../ui"


def test_every_file_that_the_page_names_is_served(server: RunningServer) -> None:
    page = get(server, "/ui").text
    named = set(re.findall(r'(?:src|href)="(ui/[^"]+)"', page))
    for script in FOLDER.glob("*.js"):
        named |= {f"ui/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert len(named) > 10
    for name in named:
        assert get(server, f"/{name}").status_code == 200, name


@pytest.mark.parametrize(
    "path", ["nothing.js", "../main.py", "..%2fmain.py", "vendor/marked.LICENSE", "__init__.py", ""]
)
def test_nothing_but_the_files_of_the_page_is_served(server: RunningServer, path: str) -> None:
    answered = get(server, f"/ui/{path}")
    assert answered.status_code in (307, 404)
    assert b"import " not in answered.content


@pytest.mark.parametrize("path", ["/ui", "/ui/app.js", "/ui/style.css", "/ui/vendor/marked.esm.js"])
def test_a_file_has_a_policy_and_is_sent_once_for_its_tag(server: RunningServer, path: str) -> None:
    first = get(server, path)
    policy = dict(part.split(" ", 1) for part in first.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert "unsafe" not in first.headers["content-security-policy"]
    assert first.headers["x-content-type-options"] == "nosniff"
    again = get(server, path, **{"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert get(server, path, **{"if-none-match": '"other"'}).status_code == 200


def test_the_page_needs_no_key_and_what_it_asks_for_does(guarded: RunningServer) -> None:
    assert get(guarded, "/", **BROWSER).status_code == 200
    assert get(guarded, "/ui/app.js").status_code == 200
    for path in ("/ui/setups?model=demo&root=http://a", "/admin/live", "/v1/models", "/ui/nothing.js"):
        assert get(guarded, path).status_code == 401, path
    assert get(guarded, "/admin/live", **bearer(ANNA)).status_code == 401
    assert len(list(frames(guarded, 1, **bearer(ADMIN)))) == 1


def test_the_page_is_refused_under_another_host_name(server: RunningServer) -> None:
    assert get(server, "/ui", host="rebound.example").status_code == 421


def test_the_setting_turns_the_page_off(tmp_path: Path) -> None:
    with running_server(tmp_path, wait=False, ui="false") as server:
        server.wait_for_log("Listening")
        for path in ("/", "/ui", "/ui/app.js"):
            assert get(server, path, **BROWSER).json()["error"]["code"] == "not_found"


def test_live_frames_have_memory_and_each_request_once(server: RunningServer) -> None:
    stream = frames(server, 30)
    first = next(stream)
    server.chat("Count to 3")
    found: list[dict[str, Any]] = []
    while not found:
        frame = next(stream)
        found = frame["requests"]
    (request,) = found
    assert (request["model"], request["status"], request["finish_reason"]) == ("demo", 200, "stop")
    assert request["number"] > max((one["number"] for one in first["requests"]), default=0)
    assert 0 < request["time_to_first_token"] < request["seconds"]
    assert 0 <= request["cached_tokens"] <= request["prompt_tokens"]
    assert next(stream)["requests"] == []
    demo = next(model for model in frame["models"] if model["model_id"] == "demo")
    assert 0 < demo["weights_bytes"] <= frame["used_bytes"] < frame["limit_bytes"]


def test_a_request_links_to_its_trace_in_the_logfire_project(tmp_path: Path) -> None:
    project = "https://logfire.example/me/mine"
    credentials = {
        "token": "t",
        "project_name": "mine",
        "project_url": project,
        "logfire_api_url": "http://127.0.0.1:9",
    }
    (tmp_path / ".logfire").mkdir()
    (tmp_path / ".logfire" / "logfire_credentials.json").write_text(json.dumps(credentials))
    with running_server(tmp_path) as server:
        server.chat("Count to 3")
        (frame,) = frames(server, 1)
        assert frame["project_url"] == project
        link = httpx.URL(frame["requests"][-1]["trace_url"])
        assert str(link).startswith(f"{project}?")
        assert re.fullmatch("trace_id='[0-9a-f]{32}'", link.params["q"])


def test_an_open_live_stream_does_not_hold_up_the_shutdown(tmp_path: Path) -> None:
    with running_server(tmp_path, drain_timeout_seconds=int(2 * HANG_SECONDS)) as server:
        stream = frames(server, 10**6)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        assert len(list(stream)) < 10
        assert server.process.wait(HANG_SECONDS) == 0


def test_a_live_stream_ends_with_its_client(server: RunningServer) -> None:
    def ended() -> int:
        return server.log.read_text().count("200 GET  /admin/live")

    before = ended()
    for _ in range(5):
        stream = frames(server, 2)
        next(stream)
        stream.close()
    eventually(ended, lambda count: count == before + 5)


def test_set_ups_name_the_server_and_the_model_for_every_client(server: RunningServer) -> None:
    root = "https://models.example/prefix"
    setups = httpx.get(f"{server.url}/ui/setups", params={"model": "demo", "root": f"{root}/"}).json()
    assert [setup["name"] for setup in setups] == list(CLIENTS)
    for setup in setups:
        text = json.dumps(setup["steps"])
        assert root in text
        assert "demo" in text or setup["name"] == "openwebui"  # it lists the models itself
        assert str(Path.home()) not in text


def test_commands_of_set_ups_expand_the_home_folder_of_the_reader(server: RunningServer) -> None:
    setups = httpx.get(f"{server.url}/ui/setups", params={"model": "demo", "root": server.url}).json()
    commands = {
        one["name"]: one["steps"][-1]["text"].splitlines()[-1] for one in setups if one["steps"][-1]["title"] == "Run"
    }
    expanded = [word.replace("$HOME", "/home/me") for word in shlex.split(commands["codex"])]
    assert 'model_catalog_json="/home/me/.codex/mlx-manager.json"' in expanded
    assert shlex.split(commands["continue"])[1:] == ["--config", "$HOME/.continue/mlx-manager.yaml"]


@pytest.mark.parametrize("root", ["javascript:alert(1)", "http://a b", "http://a'b", 'http://a"', ""])
def test_set_ups_refuse_an_address_that_is_none(server: RunningServer, root: str) -> None:
    answered = httpx.get(f"{server.url}/ui/setups", params={"model": "demo", "root": root})
    assert (answered.status_code, answered.json()["error"]["param"]) == (422, "root")


def test_vendored_files_are_what_their_manifest_says() -> None:
    vendor = FOLDER / "vendor"
    rows = re.findall(
        r"^\| (\S+\.js) \|.*\((\S+\.LICENSE)\) \| ([0-9a-f]{64}) \|$", (vendor / "README.md").read_text(), re.M
    )
    assert {name for name, _, _ in rows} == {file.name for file in vendor.glob("*.js")}
    for name, licence, digest in rows:
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name
        assert (vendor / licence).is_file()
