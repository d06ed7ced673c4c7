"""A chat template is found wherever the hub keeps one, and what is said of a model agrees with what it does."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from mlx_manager.mlx_server.models.chat_templates import read_chat_templates
from tests.running_server import HANG_SECONDS, RunningServer, running_server
from tests.small_models import make_random_llama

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


def template(words: int) -> str:
    """One that can be told by how long its prompts are."""
    return "{{ messages[-1].content }}" + " word" * words


PLAIN = template(20)
TOOL_USE = (
    "{{ tools | tojson }}{% for message in messages %}{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}"
) + " word" * 40


def write(folder: Path, name: str, content: object) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".json":
        there = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(there | {"chat_template": content}))
    else:
        file.write_text(str(content))


def jinja(folder: Path) -> None:
    write(folder, "chat_template.jinja", PLAIN)


def jinja_over_others(folder: Path) -> None:
    for name in ("processor_config.json", "chat_template.json", "tokenizer_config.json"):
        write(folder, name, template(3))
    jinja(folder)


def tokenizer_config(folder: Path) -> None:
    write(folder, "tokenizer_config.json", PLAIN)


def json_file(folder: Path) -> None:
    write(folder, "chat_template.json", PLAIN)


def processor_config(folder: Path) -> None:
    write(folder, "processor_config.json", PLAIN)


def only_additional(folder: Path) -> None:
    write(folder, "additional_chat_templates/rag.jinja", PLAIN)


def list_of_one(folder: Path) -> None:
    write(folder, "tokenizer_config.json", [{"name": "default", "template": PLAIN}])


def named_list(folder: Path) -> None:
    named = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": TOOL_USE}]
    write(folder, "tokenizer_config.json", named)


def named_object(folder: Path) -> None:
    write(folder, "chat_template.json", {"default": PLAIN, "tool_use": TOOL_USE})


def additional_file(folder: Path) -> None:
    jinja(folder)
    write(folder, "additional_chat_templates/tool_use.jinja", TOOL_USE)


def additional_beside_config(folder: Path) -> None:
    tokenizer_config(folder)
    write(folder, "additional_chat_templates/tool_use.jinja", TOOL_USE)


ONE = [jinja, jinja_over_others, tokenizer_config, json_file, processor_config, only_additional, list_of_one]
TWO = [named_list, named_object, additional_file, additional_beside_config]
LAYOUTS: list[Callable[[Path], None]] = [*ONE, *TWO]


def no_template(folder: Path) -> None:
    pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("templates")
    for layout in (*LAYOUTS, no_template):
        layout(make_random_llama(root / "models" / layout.__name__, chat_template=False))
    with running_server(root, models_dir=root / "models", max_models=1) as running:
        yield running


def prompt_tokens(server: RunningServer, model: str, **parameters: object) -> int | None:
    """None where the model takes no such request."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **parameters}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code in (200, 400), answer.text
    tokens: int | None = answer.json()["usage"]["prompt_tokens"] if answer.status_code == 200 else None
    return tokens


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_chats_with_the_template_of_its_folder(server: RunningServer, layout: Callable[[Path], None]) -> None:
    name = layout.__name__
    plain, with_tools = prompt_tokens(server, name), prompt_tokens(server, name, tools=TOOLS)
    assert plain is not None
    assert 20 <= plain < 40
    assert with_tools is not None
    assert with_tools >= 40
    capabilities = server_capabilities(server, name)
    assert (capabilities["chat"], capabilities["tools"]) == (True, "native" if layout in TWO else "prompted")


def server_capabilities(server: RunningServer, model: str) -> dict[str, object]:
    capabilities: dict[str, object] = httpx.get(f"{server.url}/v1/models/{model}", timeout=HANG_SECONDS).json()[
        "capabilities"
    ]
    return capabilities


def test_a_model_without_a_template_says_so_and_does_not_chat(server: RunningServer) -> None:
    assert server_capabilities(server, "no_template")["chat"] is False
    body = {"model": "no_template", "messages": [{"role": "user", "content": "x"}]}
    assert server.post("/v1/chat/completions", body).status_code == 400


@pytest.mark.parametrize("entry", [None, 3, [], {}, [None], [{"name": "default"}], [{"template": "x"}], {"a": 1}])
def test_an_entry_that_is_no_template_is_none(tmp_path: Path, entry: object) -> None:
    write(tmp_path, "tokenizer_config.json", entry)
    assert read_chat_templates(tmp_path) == {}


def test_the_users_own_template_stands_for_all(tmp_path: Path) -> None:
    additional_file(tmp_path)
    (tmp_path / "mine.jinja").write_text("mine")
    assert read_chat_templates(tmp_path, tmp_path / "mine.jinja") == {"default": "mine"}
