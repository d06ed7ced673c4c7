"""Settings that are read again by the running server: what takes effect, what is told, and who is not disturbed."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.command_line.commands import in_terminal
from tests.faulty_upstream import DONE, Answer, faulty_upstream, piece
from tests.running_server import (
    HANG_SECONDS,
    RunningServer,
    chunks_of,
    environment_of_server,
    eventually,
    running_server,
)
from tests.small_models import make_random_model

LONG = {"prompt": "x", "temperature": 0, "max_tokens": 1200}
SHORT = LONG | {"max_tokens": 3}
NOTHING: dict[str, list[str]] = {"added": [], "removed": [], "changed": [], "to_load_again": []}


def reload(server: RunningServer, key: str | None = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    return httpx.post(f"{server.url}/admin/reload", headers=headers, timeout=HANG_SECONDS)


def rows(server: RunningServer) -> dict[str, dict[str, Any]]:
    pool = httpx.get(f"{server.url}/admin/pool", timeout=HANG_SECONDS).json()
    return {model["id"]: model for model in pool["models"]}


def entry(folder: Path, model_id: str, **lines: object) -> str:
    more = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
    return f'[[models]]\nid = "{model_id}"\npath = "{folder}"\n{more}'


def tokens_unasked(server: RunningServer, model: str) -> int:
    """How many tokens an answer has when the request does not say."""
    answer = server.post("/v1/completions", {"model": model, "prompt": "x", "temperature": 0})
    return int(answer.json()["usage"]["completion_tokens"])


def test_catalogue_follows_the_file_and_requests_under_way_do_not_notice(tmp_path: Path, babbler: Path) -> None:
    other = make_random_model(tmp_path / "other")
    file = tmp_path / "mlx-manager.toml"
    file.write_text(entry(babbler, "goes") + entry(babbler, "changes", max_tokens=4, ttl=500))
    with running_server(tmp_path, hub_cache=False) as server:
        assert tokens_unasked(server, "changes") == 4
        with server.stream("/v1/completions", LONG | {"model": "goes"}) as payloads:
            next(payloads)
            file.write_text(entry(other, "comes", pin=True) + entry(babbler, "changes", max_tokens=6, ttl=900))
            report = reload(server)
            assert (report.status_code, report.json()) == (
                200,
                {
                    "changed": ["models"],
                    "needs_restart": [],
                    "models": {
                        "added": ["comes"],
                        "removed": ["goes"],
                        "changed": ["changes"],
                        "to_load_again": ["changes"],
                    },
                },
            )
            assert server.post("/v1/completions", SHORT | {"model": "goes"}).status_code == 404
            assert chunks_of(payloads)[-1]["choices"][0]["finish_reason"] == "length"
        eventually(server.workers, lambda workers: len(workers) == 2)  # the demo's, and that of `changes`
        assert server.post("/v1/completions", SHORT | {"model": "comes"}).status_code == 200
        found = rows(server)
        assert (found["comes"]["pinned"], found["changes"]["ttl"]) == (True, 900)
        assert 500 < found["changes"]["expires_in"] <= 900
        assert tokens_unasked(server, "changes") == 4
        server.post("/admin/models/changes/unload", {})
        assert tokens_unasked(server, "changes") == 6


def test_hangup_reloads_and_the_log_says_what_has_to_wait_for_a_restart(tmp_path: Path, babbler: Path) -> None:
    (tmp_path / "mlx-manager.toml").write_text("max_queue = 7\n")
    with running_server(tmp_path, default_model=babbler, max_queue=0) as server:
        assert httpx.get(f"{server.url}/before").status_code == 404
        (tmp_path / "mlx-manager.toml").write_text(
            'max_memory_gb = 1.5\nmax_queue = 9\nlog_level = "WARNING"\nmax_models = 9\n'
            'keep_alive = "5m"\nrequest_timeout_seconds = 0.2\n'
        )
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("need a restart")
        waiting = ["max_models", "max_memory_gb", "request_timeout_seconds"]
        assert f"Settings that need a restart to take effect: {', '.join(waiting)}" in server.log.read_text()
        assert server.post("/v1/completions", SHORT | {"model": "babbler"}).status_code == 200
        assert rows(server)["babbler"]["ttl"] == 300
        assert httpx.get(f"{server.url}/admin/pool").json()["budget"]["max_models"] == 4
        assert httpx.get(f"{server.url}/after").status_code == 404
        again = reload(server).json()  # what waits for a restart goes on being named; the environment goes first
        assert again == {"changed": [], "needs_restart": waiting, "models": NOTHING}
        assert "/before" in server.log.read_text()
        assert "/after" not in server.log.read_text()  # INFO, below the new level


FAULTY_FILES = {
    'max_queue = 3\nkeep_alive = "soon"\nno_such = 1\n': ["Bad setting keep_alive: ", "Bad setting no_such: "],
    "max_queue = \n": ["The settings file mlx-manager.toml cannot be read: "],
    '[[models]]\nid = "a"\npath = "/no/folder"\n': ["Bad setting models.0: path: there is no folder /no/folder"],
}


def told_twice(fault: str, log: str) -> bool:
    return log.count(f"not reloaded: {fault}") == 2


def test_file_with_a_fault_changes_nothing_and_each_fault_is_told(tmp_path: Path, babbler: Path) -> None:
    file = tmp_path / "mlx-manager.toml"
    file.write_text("max_queue = 0\n")
    with running_server(tmp_path, default_model=babbler) as server:
        for broken, faults in FAULTY_FILES.items():
            file.write_text(broken)
            refused = reload(server)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["type"]) == (400, "bad_settings", "invalid_request_error")
            server.process.send_signal(signal.SIGHUP)
            for fault in faults:
                assert fault in error["message"]
                eventually(server.log.read_text, partial(told_twice, fault))
        with server.stream("/v1/completions", LONG | {"model": "babbler", "n": 64}) as payloads:
            next(payloads)
            assert server.post("/v1/completions", SHORT | {"model": "babbler"}).status_code == 429  # max_queue is 0
        assert "Traceback" not in server.log.read_text()


def test_default_model_that_the_file_does_not_have_any_more_is_a_fault(tmp_path: Path, babbler: Path) -> None:
    file = tmp_path / "mlx-manager.toml"
    file.write_text(entry(babbler, "mine"))
    with running_server(tmp_path, default_model="mine") as server:
        file.write_text("")
        refused = reload(server)
        assert "model 'mine' does not exist" in refused.json()["error"]["message"]
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("Settings not reloaded: Bad setting default_model")
        assert server.post("/v1/completions", SHORT | {"model": "mine"}).status_code == 200


def test_admin_key_of_the_file_holds_from_the_reload_on(tmp_path: Path) -> None:
    file = tmp_path / "mlx-manager.toml"
    file.write_text('admin_key = "old"\n')
    with running_server(tmp_path) as server:
        assert reload(server).status_code == 401
        file.write_text('admin_key = "new"\n')
        assert reload(server, "old").json()["changed"] == ["admin_key"]
        assert (reload(server, "old").status_code, reload(server, "new").status_code) == (401, 200)
        assert "new" not in reload(server, "new").text


def upstream_table(name: str, url: str, model: str) -> str:
    return f'[[upstreams]]\nname = "{name}"\nkind = "openai"\nbase_url = "{url}"\nmodels = ["{model}"]\n'


def test_upstreams_come_and_go_and_those_that_go_finish_their_answers(tmp_path: Path, babbler: Path) -> None:
    file = tmp_path / "mlx-manager.toml"
    well = Answer((piece("Hello"), piece(" you"), piece("", finish_reason="stop"), DONE))
    with faulty_upstream({"slow": Answer(well.body, waits=True), "well": well, "other": well}) as upstream:
        stays = upstream_table("stays", upstream.url, "well")
        file.write_text(upstream_table("one", upstream.url, "slow") + stays)
        with running_server(tmp_path, default_model=babbler, max_queue=0) as server:
            with server.stream("/v1/completions", SHORT | {"model": "slow"}) as payloads:
                next(payloads)
                others = '[fallbacks]\nbabbler = ["other"]\n'
                file.write_text(others + stays + upstream_table("two", upstream.url, "other"))
                assert reload(server).json()["changed"] == ["upstreams", "fallbacks"]
                assert server.post("/v1/completions", SHORT | {"model": "slow"}).status_code == 404
                answers = [server.post("/v1/completions", SHORT | {"model": one}) for one in ("well", "other")]
                assert [answer.json()["choices"][0]["text"] for answer in answers] == ["Hello you"] * 2
                assert "Upstream one is removed" not in server.log.read_text()
                upstream.go_on.release(3)
                assert chunks_of(payloads)[-1]["choices"][0]["finish_reason"] == "stop"
            server.wait_for_log("Upstream one is removed")
            with server.stream("/v1/completions", LONG | {"model": "babbler", "n": 64}) as payloads:
                next(payloads)
                in_its_place = server.post("/v1/completions", SHORT | {"model": "babbler"})
            assert in_its_place.json()["choices"][0]["text"] == "Hello you"
            assert [one["name"] for one in server.readiness()["upstreams"]] == ["stays", "two"]
        assert "Traceback" not in server.log.read_text()


def test_many_reloads_under_load_lose_no_request(tmp_path: Path, babbler: Path) -> None:
    """Nor the load that they wait for: it ends with what the file said last."""
    file = tmp_path / "mlx-manager.toml"
    variants = [entry(babbler, "a", ttl=ttl) + (entry(babbler, "b") if ttl % 2 else "") for ttl in range(100, 112)]
    file.write_text(variants[0])
    with running_server(tmp_path) as server, ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(server.post, "/v1/completions", SHORT | {"model": "a"}) for _ in range(40)]
        for variant in variants:
            file.write_text(variant)
            server.process.send_signal(signal.SIGHUP)
            assert reload(server).status_code == 200
        assert {request.result().status_code for request in asked} == {200}
        assert rows(server)["a"]["ttl"] == 111


def test_terminal_that_is_closed_ends_the_server(tmp_path: Path) -> None:
    environment = environment_of_server({"port": 0, "log_level": "INFO"}) | {"PWD": str(tmp_path)}
    with in_terminal("serve", environment=environment) as terminal:
        terminal.wait_for("Model loaded")
        terminal.close()
        assert terminal.process.wait(HANG_SECONDS) == 0


def test_keys_that_a_reload_brings_count_from_then_on(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n")
    keys.chmod(0o600)
    (tmp_path / "mlx-manager.toml").write_text('admin_key = "admin-key"\n')
    with running_server(tmp_path, api_keys_file=keys) as server:
        assert statuses_of_keys(server, "first-key", "second-key") == [200, 401]
        keys.write_text("second-key\n")
        assert reload(server, "admin-key").status_code == 200
        assert statuses_of_keys(server, "first-key", "second-key") == [401, 200]
        keys.unlink()
        refused = reload(server, "admin-key")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_settings")
        assert statuses_of_keys(server, "first-key", "second-key") == [401, 200]


def test_keys_stay_where_others_reach_the_server(tmp_path: Path) -> None:
    file = tmp_path / "mlx-manager.toml"
    file.write_text('admin_key = "admin-key"\napi_keys = ["first-key"]\n')
    with running_server(tmp_path, host="0.0.0.0") as server:
        file.write_text('admin_key = "admin-key"\n')
        refused = reload(server, "admin-key")
        assert refused.status_code == 400
        assert "MLX_SERVER_API_KEYS" in refused.json()["error"]["message"]
        assert statuses_of_keys(server, "first-key", "second-key") == [200, 401]


def statuses_of_keys(server: RunningServer, *keys: str) -> list[int]:
    return [httpx.get(f"{server.url}/v1/models", headers={"x-api-key": key}).status_code for key in keys]
