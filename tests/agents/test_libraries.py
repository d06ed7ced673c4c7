"""openai-agents and smolagents round a tool loop on a scripted upstream behind this server."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.agents.installing import SECONDS, installed
from tests.agents.scripted import Scripted, calls, says
from tests.faulty_upstream import FaultyUpstream, faulty_upstream
from tests.running_server import RunningServer, running_server

OPENAI_AGENTS = """
import json, sys
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=sys.argv[1] + "/v1", api_key="none")

@function_tool
def get_weather(city: str) -> str:
    "Get the weather in a city."
    return f"7 degrees in {city}"

answers = []
for make in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
    model = make(model="agents", openai_client=client)
    agent = Agent(name="agent", instructions="Be brief.", tools=[get_weather], model=model)
    answers.append(Runner.run_sync(agent, "What is the weather in Oslo?").final_output)
print(json.dumps(answers))
"""
SMOLAGENTS = """
import json, sys
from smolagents import OpenAIServerModel, ToolCallingAgent, tool

@tool
def get_weather(city: str) -> str:
    '''Get the weather in a city.

    Args:
        city: The city.
    '''
    return f"7 degrees in {city}"

model = OpenAIServerModel("smolagents", api_base=sys.argv[1] + "/v1", api_key="none")
agent = ToolCallingAgent(tools=[get_weather], model=model, verbosity_level=0)
print(json.dumps([agent.run("What is the weather in Oslo?")]))
"""
WEATHER = calls("get_weather", '{"city": "Oslo"}', "The weather is asked for.")


class BySteps(dict[str, Any]):
    """Gives the first answer to the first request, and the second to all others."""

    def __init__(self, upstream: FaultyUpstream, model: str, script: Sequence[Any]) -> None:
        super().__init__({model: script[0]})
        self._upstream = upstream
        self._script = script

    def __getitem__(self, model: str) -> Any:
        return self._script[min(len(self._upstream.bodies), len(self._script)) - 1]


@pytest.fixture
def upstream() -> Iterator[FaultyUpstream]:
    with faulty_upstream({}) as running:
        yield running


def front(folder: Path, upstream: FaultyUpstream, model: str) -> Any:
    upstreams = [{"name": "up", "kind": "openai", "base_url": upstream.url, "models": [model]}]
    return running_server(folder, upstreams=json.dumps(upstreams))


def answers(python: Path, folder: Path, code: str, server: RunningServer) -> list[str]:
    program = folder / "program.py"  # smolagents reads a tool's source
    program.write_text(code)
    command = [str(python), str(program), server.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert ended.returncode == 0, ended.stderr
    printed: list[str] = json.loads(ended.stdout.splitlines()[-1])
    return printed


@pytest.mark.seen("tool loop", client="openai-agents")
def test_openai_agents_runs_a_tool_over_both_of_its_protocols(tmp_path: Path, upstream: FaultyUpstream) -> None:
    python = installed("openai-agents")
    upstream.answers = Scripted(upstream, {"agents": (WEATHER, says("It is ", "7 degrees."))})
    with front(tmp_path, upstream, "agents") as server:
        assert answers(python, tmp_path, OPENAI_AGENTS, server) == ["It is 7 degrees."] * 2
    results = [body["messages"][-1] for body in upstream.bodies if body["messages"][-1]["role"] == "tool"]
    assert [result["content"] for result in results] == ["7 degrees in Oslo"] * 2


@pytest.mark.seen("tool loop", client="smolagents")
def test_smolagents_runs_a_tool_and_ends_by_its_own(tmp_path: Path, upstream: FaultyUpstream) -> None:
    """It writes results of tools as a user's messages, and answers by a tool."""
    python = installed("smolagents")
    end = calls("final_answer", '{"answer": "7 degrees"}', "That is all.")
    upstream.answers = BySteps(upstream, "smolagents", (WEATHER, end))
    with front(tmp_path, upstream, "smolagents") as server:
        assert answers(python, tmp_path, SMOLAGENTS, server) == ["7 degrees"]
    assert "7 degrees in Oslo" in json.dumps(upstream.bodies[1]["messages"])
    assert [tool["function"]["name"] for tool in upstream.bodies[0]["tools"]] == ["get_weather", "final_answer"]
