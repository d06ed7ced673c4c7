"""Codex against this server: on the demo model, and round tool loops on a scripted upstream behind it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agents.codex import Codex, items_of
from tests.agents.installing import installed
from tests.agents.scripted import Scripted, calls, says
from tests.faulty_upstream import FaultyUpstream, faulty_upstream
from tests.running_server import HANG_SECONDS, RunningServer, running_server

NO_TOOLS = (
    *(
        argument
        for feature in ("shell_tool", "multi_agent", "goals", "view_image")
        for argument in ("--disable", feature)
    ),
    *("-c", "tools.experimental_request_user_input.enabled=false"),
    *("-c", 'web_search="disabled"'),
)
"""The smallest of models would rather call tools than answer."""
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
COMMAND = "echo hello > made-by-codex.txt"
PATCH = '*** Begin Patch\n*** Add File: patched.txt\n+"hello" {from} codex\n*** End Patch\n'
SCRIPTS = {
    "runs": (
        calls("exec_command", json.dumps({"cmd": COMMAND}), "A file is to be made."),
        says("The file ", "is made."),
    ),
    "patches": (calls("apply_patch", json.dumps({"input": PATCH}), "A patch does it."), says("It is ", "patched.")),
}


@pytest.fixture(scope="module")
def program() -> Path:
    return installed("codex")


@pytest.fixture(scope="module")
def upstream(program: Path) -> Iterator[FaultyUpstream]:
    with faulty_upstream({}) as running:
        running.answers = Scripted(running, SCRIPTS)
        yield running


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, upstream: FaultyUpstream) -> Iterator[RunningServer]:
    upstreams = [{"name": "up", "kind": "openai", "base_url": upstream.url, "models": list(SCRIPTS)}]
    settings: dict[str, Any] = {"upstreams": json.dumps(upstreams), "api_keys": "a-key"}
    with running_server(tmp_path_factory.mktemp("front"), **settings) as running:
        yield running


@pytest.fixture
def codex(program: Path, tmp_path: Path, front: RunningServer) -> Codex:
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    made = Codex(program, tmp_path / "home", tmp_path / "work")
    models = httpx.get(f"{front.url}/v1/models", headers={"x-api-key": "a-key"}, timeout=HANG_SECONDS)
    made.configure(front.url, models.json())
    return made


def test_codex_reads_the_list_of_models(codex: Codex) -> None:
    models = {model["slug"]: model for model in codex.catalog()}
    assert models.keys() >= {"demo", *SCRIPTS}
    assert (models["demo"]["context_window"], models["demo"]["apply_patch_tool_type"]) == (8192, "freeform")


def test_a_question_to_the_demo_model_ends_well(codex: Codex) -> None:
    events = codex.ask("demo", "Count to 4")
    assert [item["text"] for item in items_of(events, "agent_message")] != [""]
    assert items_of(events, "error") == []
    assert events[-1]["usage"]["input_tokens"] > 500


def test_an_answer_of_the_demo_model_follows_the_output_schema(codex: Codex) -> None:
    schema = codex.home / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    events = codex.ask("demo", "Is it cold?", "--output-schema", str(schema), *NO_TOOLS)
    (message,) = items_of(events, "agent_message")
    assert json.loads(message["text"]) in ({"answer": "yes"}, {"answer": "no"})


@pytest.mark.seen("tool loop", client="codex")
def test_a_command_is_run_and_its_result_answered(codex: Codex, upstream: FaultyUpstream) -> None:
    events = codex.ask("runs", "Make the file.")
    assert (codex.folder / "made-by-codex.txt").read_text() == "hello\n"
    assert items_of(events, "agent_message")[-1]["text"] == "The file is made."
    called, result = upstream.bodies[-1]["messages"][-2:]
    assert json.loads(called["tool_calls"][0]["function"]["arguments"])["cmd"] == COMMAND
    assert called["reasoning_content"] == "A file is to be made."
    assert result["tool_call_id"] == called["tool_calls"][0]["id"]


@pytest.mark.seen("tool loop", client="codex")
def test_a_patch_is_applied_and_its_result_answered(codex: Codex, upstream: FaultyUpstream) -> None:
    events = codex.ask("patches", "Make the file.")
    assert (codex.folder / "patched.txt").read_text() == '"hello" {from} codex\n'
    assert items_of(events, "agent_message")[-1]["text"] == "It is patched."
    first, last = upstream.bodies[-2:]
    (tool,) = (tool["function"] for tool in first["tools"] if tool["function"]["name"] == "apply_patch")
    assert tool["parameters"]["required"] == ["input"]
    called, result = last["messages"][-2:]
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"input": PATCH}
    assert (result["role"], result["tool_call_id"]) == ("tool", called["tool_calls"][0]["id"])
