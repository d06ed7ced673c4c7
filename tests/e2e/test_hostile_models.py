"""Models that mean harm, by their templates and their code, and requests that point at what is not theirs."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.running_server import RunningServer, running_server, wait_for_exit
from tests.small_models import make_random_llama

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ATTACKS = {
    "endless": ENDLESS,
    "power": "{% set n = 10 %}{{ n ** (n ** n) }}",
    "times": "{{ ('a' * 10 ** 10) | length }}",
    "center": "{{ ('a' | center(10 ** 10)) | length }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "long prompt": "{% for i in range(50000) %}{{ 'a' * 100 }}{% endfor %}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "popen": "{{ cycler.__init__.__globals__.os.popen('touch ' ~ tools).read() }}",
    "include": "{% include '/etc/passwd' %}",
}
LIMITED = {"endless": "2 seconds", "power": "2 seconds", "times": "1024 MB", "center": "1024 MB", "output": "64 MB"}
REMOTE_CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hostile` attacks as the last message says, `endless` always; `coder` and `trusted` bring code of their own."""
    folder = tmp_path_factory.mktemp("hostile-models")
    hostile = make_random_llama(folder / "models" / "hostile")
    chosen = "".join(
        f"{{% if messages[-1].content == '{name}' %}}{attack}{{% endif %}}" for name, attack in ATTACKS.items()
    )
    (hostile / "chat_template.jinja").write_text(chosen)
    shutil.copytree(hostile, folder / "models" / "endless")
    (folder / "models" / "endless" / "chat_template.jinja").write_text(ENDLESS)
    for name in ("coder", "trusted"):
        bring_code(make_random_llama(folder / name), folder / f"{name}-ran")
    (folder / "mlx-manager.toml").write_text(
        f"""
        [[models]]
        id = "coder"
        path = "{folder / "coder"}"
        [[models]]
        id = "trusted"
        path = "{folder / "trusted"}"
        trust_remote_code = true
        """
    )
    return folder


def bring_code(model: Path, marker: Path) -> None:
    """Gives the model a tokenizer in Python, which touches `marker` when it is imported."""
    config = json.loads((model / "tokenizer_config.json").read_text("utf-8"))
    config |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "tokenization.OwnTokenizer"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "tokenization.py").write_text(REMOTE_CODE.format(marker=str(marker)))


@pytest.fixture(scope="module")
def beset(folder: Path) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_MODULES_CACHE", str(folder / "modules"))
        with running_server(folder, models_dir=folder / "models", hub_cache=False) as server:
            yield server


def say(server: RunningServer, model: str, content: object) -> httpx.Response:
    messages = [{"role": "user", "content": content}]
    return server.post("/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 8})


class Listener:
    """A client of the demo model that streams one answer after the other while the block runs."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._stream)
        self.gaps_seconds: list[float] = []
        self.streams_that_ended_well: list[bool] = []

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._enough.set()
        self._thread.join()

    def _stream(self) -> None:
        body = {"model": "demo", "messages": [{"role": "user", "content": "Count to 30"}], "temperature": 0}
        while not self._enough.is_set():
            last, is_whole = time.monotonic(), False
            with self._server.stream("/v1/chat/completions", body) as payloads:
                for payload in payloads:
                    self.gaps_seconds.append(time.monotonic() - last)
                    last, is_whole = time.monotonic(), payload == "[DONE]"
            self.streams_that_ended_well.append(is_whole)


def test_hostile_templates_are_refused_in_time_while_others_are_served(beset: RunningServer) -> None:
    beset.post("/v1/completions", {"model": "hostile", "prompt": "x", "max_tokens": 1})
    with Listener(beset) as listener:
        for name in ATTACKS:
            answer = say(beset, "hostile", name)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, "messages"), (name, error)
            assert error["code"] == ("chat_template_failed" if name in LIMITED else "invalid_request"), error
            assert LIMITED.get(name, "") in error["message"]
    assert listener.streams_that_ended_well
    assert all(listener.streams_that_ended_well)
    assert max(listener.gaps_seconds) < sum(listener.gaps_seconds) / 2
    assert beset.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"


def test_a_model_whose_template_never_ends_loads_with_a_warning_and_completes(beset: RunningServer) -> None:
    answer = beset.post("/v1/completions", {"model": "endless", "prompt": "x", "max_tokens": 1})
    assert answer.status_code == 200
    assert "Tool calls of model endless may fail: The model's chat template takes more than 2" in beset.log.read_text()
    assert say(beset, "endless", "Hi").json()["error"]["code"] == "chat_template_failed"


def test_a_client_that_leaves_an_endless_template_leaves_nothing_behind(beset: RunningServer) -> None:
    say(beset, "hostile", "nothing")
    before = beset.holdings()
    body = {"model": "hostile", "messages": [{"role": "user", "content": "endless"}]}
    for _ in range(4):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{beset.url}/v1/chat/completions", json=body, timeout=0.2)
    assert beset.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"
    beset.wait_until_nothing_is_left_of_it(before)


def test_code_that_a_model_brings_runs_only_where_it_is_trusted(beset: RunningServer, folder: Path) -> None:
    for model in ("coder", "trusted"):
        beset.post("/v1/completions", {"model": model, "prompt": "x", "max_tokens": 1})
        asked = {"model": model, "prompt": "x", "max_tokens": 1, "trust_remote_code": True}
        beset.post("/v1/completions", asked)
    assert (folder / "trusted-ran").exists()
    assert not (folder / "coder-ran").exists()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "{url}/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "{url}/a.wav", "format": "wav"}},
        {"type": "file", "file": {"file_data": "{url}/a.pdf"}},
        {"type": "video_url", "video_url": {"url": "{url}/a.mp4"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    ],
)
def test_addresses_in_messages_are_refused_and_never_fetched(beset: RunningServer, part: dict[str, object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as private:
        url = f"http://127.0.0.1:{private.getsockname()[1]}"
        answer = say(beset, "demo", [json.loads(json.dumps(part).replace("{url}", url))])
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "messages[0].content[0]")
        assert say(beset, "demo", f"Look at {url}/a.png").status_code == 200
        private.settimeout(0.2)
        with pytest.raises(TimeoutError):
            private.accept()


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "../{name}", "hostile/../../{name}", "..%2f{name}", "~"])
def test_ids_are_no_paths(beset: RunningServer, folder: Path, form: str) -> None:
    """There is a model at that place, whose config nobody could read without waiting for ever: it is a pipe."""
    place = folder / "elsewhere"
    if not place.exists():
        place.mkdir()
        os.mkfifo(place / "config.json")
    model = form.format(path=place, name=place.name)
    asked = {"model": model, "prompt": "x", "max_tokens": 1}
    answer = beset.post("/v1/completions", asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert httpx.get(f"{beset.url}/v1/models/{model}", timeout=10).status_code == 404


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd"])
def test_requests_name_no_adapters(beset: RunningServer, name: str) -> None:
    answer = beset.post("/v1/completions", {"model": "demo", "prompt": "x", "adapters": name})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "adapters")


def test_no_renderer_is_left_when_the_server_has_gone(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        server.chat("Hi")
        renderers = renderers_of(server)
        assert renderers
    for process in renderers:
        wait_for_exit(process)


def test_a_server_that_is_killed_leaves_no_renderer(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        server.chat("Hi")
        renderers = renderers_of(server)
        assert renderers
        server.process.kill()
        for process in renderers:
            wait_for_exit(process)


def renderers_of(server: RunningServer) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "mlx_manager.mlx_server.templates.renderer" in child.cmdline()]
