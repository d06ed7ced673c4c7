"""instructor, LangChain and openai-agents against the running server, in an environment apart: `make test-clients`."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.mlx_server.engine.embedding.tiny import EMBEDDERS, make_model
from tests.running_server import HANG_SECONDS, RunningServer, running_server

PYTHON = Path(__file__).parents[2] / ".cache" / "clients" / "bin" / "python"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="make test-clients installs the clients")

LIGHT = """
import json, sys
from typing import Literal
from pydantic import BaseModel

class Light(BaseModel):
    "A light."
    color: Literal["red", "green"]
    on: bool

ASKED = [{"role": "user", "content": "A red light"}]
URL = sys.argv[1] + "/v1"
"""
INSTRUCTOR = f"""{LIGHT}
import instructor, openai

seen = {{}}
for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key="none"), mode=mode)
    asked = dict(model="demo", response_model=Light, messages=ASKED, max_retries=0, max_tokens=60, temperature=0)
    light = client.chat.completions.create(**asked)
    partial = list(client.chat.completions.create_partial(**asked))[-1]
    seen[mode.name] = [light.model_dump(mode="json"), partial.model_dump(mode="json")]
print(json.dumps(seen))
"""
LANGCHAIN = f"""{LIGHT}
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

@tool
def get_weather(city: str) -> str:
    "Get the weather in a city"
    return json.dumps({{"degrees": 7}})

model = ChatOpenAI(base_url=URL, api_key="none", model="demo", temperature=0, max_tokens=100)
bound = model.bind_tools([get_weather])
messages = [HumanMessage("What is the weather in Oslo?")]
called = bound.invoke(messages)
messages += [called, *(get_weather.invoke(call) for call in called.tool_calls)]
streamed = None
for chunk in bound.stream(messages[:1]):
    streamed = chunk if streamed is None else streamed + chunk
seen = {{
    "called": [[call["name"], call["args"]] for call in called.tool_calls],
    "streamed": [[call["name"], call["args"]] for call in streamed.tool_calls],
    "result": [message.content for message in messages if isinstance(message, ToolMessage)],
    "told": bound.invoke(messages).content,
    "any": len(model.bind_tools([get_weather], tool_choice="any").invoke("Hello").tool_calls),
}}
for method in ("function_calling", "json_schema"):
    seen[method] = model.with_structured_output(Light, method=method).invoke(ASKED).model_dump(mode="json")
print(json.dumps(seen))
"""


RESPONSES = f"""{LIGHT}
import asyncio
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

@tool
def get_weather(city: str) -> str:
    "Get the weather in a city"
    return json.dumps({{"degrees": 7}})

options = dict(base_url=URL, api_key="none", model="demo", temperature=0, use_responses_api=True)
bound = ChatOpenAI(**options).bind_tools([get_weather])
messages = [HumanMessage("What is the weather in Oslo?")]
called = bound.invoke(messages)
messages += [called, *(get_weather.invoke(call) for call in called.tool_calls)]
streamed = None
for chunk in bound.stream(messages[:1]):
    streamed = chunk if streamed is None else streamed + chunk
stored = ChatOpenAI(**options, use_previous_response_id=True)
counted = stored.invoke("Count to 3")
light = ChatOpenAI(**options).with_structured_output(Light, method="json_schema").invoke("A red light")

from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from openai import AsyncOpenAI

set_default_openai_client(AsyncOpenAI(base_url=URL, api_key="none"))
set_tracing_disabled(True)
settings = ModelSettings(temperature=0)
@function_tool(name_override="get_weather")
def look_up_weather(city: str) -> str:
    "Get the weather in a city"
    return json.dumps({{"degrees": 7}})

async def run():
    agent = Agent(name="agent", model="demo", tools=[look_up_weather], model_settings=settings)
    whole = await Runner.run(agent, "What is the weather in Oslo?")
    streaming = Runner.run_streamed(agent, "What is the weather in Oslo?")
    async for _ in streaming.stream_events():
        pass
    following = await Runner.run(agent, "Count to 4", previous_response_id=whole.last_response_id)
    return [whole.final_output, streaming.final_output, following.final_output]

seen = {{
    "called": [[call["name"], call["args"]] for call in called.tool_calls],
    "streamed": [[call["name"], call["args"]] for call in streamed.tool_calls],
    "told": bound.invoke(messages).text,
    "followed": stored.invoke([HumanMessage("Count to 3"), counted, HumanMessage("Count to 4")]).text,
    "light": light.model_dump(mode="json"),
    "agents": asyncio.run(run()),
}}
print(json.dumps(seen))
"""

LANGCHAIN_EMBEDDINGS = """
import json, sys
from langchain_openai import OpenAIEmbeddings

embeddings = OpenAIEmbeddings(
    base_url=sys.argv[1] + "/v1", api_key="none", model="tiny", check_embedding_ctx_length=False, chunk_size=2
)
documents = embeddings.embed_documents(["w1 w2", "w3", "w4 w5 w6"])
print(json.dumps({"documents": documents, "query": embeddings.embed_query("w3")}))
"""


def seen_by(program: str, server: RunningServer) -> dict[str, Any]:
    ran = subprocess.run([PYTHON, "-c", program, server.url], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert ran.returncode == 0, ran.stderr
    seen: dict[str, Any] = json.loads(ran.stdout)
    return seen


def is_light(value: dict[str, Any]) -> bool:
    return value.keys() == {"color", "on"} and value["color"] in ("red", "green") and isinstance(value["on"], bool)


def test_instructor_gets_its_model_in_every_mode_that_sends_the_schema(server: RunningServer) -> None:
    seen = seen_by(INSTRUCTOR, server)
    assert seen.keys() == {"TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"}
    for whole, partial in seen.values():
        assert is_light(whole)
        assert whole == partial


def test_langchain_calls_tools_and_gets_structured_output(server: RunningServer) -> None:
    seen = seen_by(LANGCHAIN, server)
    assert seen["called"] == seen["streamed"] == [["get_weather", {"city": "Oslo"}]]
    assert seen["result"] == ['{"degrees": 7}']
    assert "7" in seen["told"]
    assert seen["any"] >= 1
    assert is_light(seen["function_calling"])
    assert is_light(seen["json_schema"])


def test_langchain_and_openai_agents_speak_responses(server: RunningServer) -> None:
    seen = seen_by(RESPONSES, server)
    assert seen["called"] == seen["streamed"] == [["get_weather", {"city": "Oslo"}]]
    assert seen["followed"] == "1, 2, 3, 4"
    assert is_light(seen["light"])
    whole, streamed, following = seen["agents"]
    assert "7" in seen["told"]
    assert whole == streamed
    assert "7" in whole
    assert following == "1, 2, 3, 4"


def test_langchain_gets_embeddings_of_documents_and_queries(tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "tiny", EMBEDDERS["bert"])
    with running_server(tmp_path, models_dir=tmp_path / "models") as server:
        seen = seen_by(LANGCHAIN_EMBEDDINGS, server)
    assert [len(vector) for vector in seen["documents"]] == [32, 32, 32]
    assert seen["query"] == pytest.approx(seen["documents"][1], abs=1e-5)
