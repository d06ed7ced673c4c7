"""openai-node against the running server."""

import json
import subprocess
from typing import Any

from tests.node import install_openai_node
from tests.running_server import HANG_SECONDS, RunningServer

PROGRAM = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[1] + "/v1", apiKey: "not-needed", maxRetries: 0 });
const request = { model: "demo", messages: [{ role: "user", content: "Count to 6" }], temperature: 0 };
const whole = await client.chat.completions.create(request);
let text = "", usage = null, reason = null;
const options = { ...request, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(options)) {
  text += chunk.choices[0]?.delta?.content ?? "";
  reason = chunk.choices[0]?.finish_reason ?? reason;
  usage = chunk.usage ?? usage;
}
const completion = await client.completions.create({ model: "demo", prompt: "Once upon", max_tokens: 4 });
const several = { ...request, n: 2, logprobs: true, top_logprobs: 2 };
const choices = (await client.chat.completions.create(several)).choices;
const spelt = ["", ""];
for await (const chunk of await client.chat.completions.create({ ...several, stream: true })) {
  for (const { index, logprobs } of chunk.choices)
    for (const { token } of logprobs?.content ?? []) spelt[index] += token;
}
const scoring = { model: "demo", prompt: ["Once", "upon"], max_tokens: 0, echo: true, logprobs: 1 };
const scored = await client.completions.create(scoring);
const wrong = await client.chat.completions.create({ ...request, top_logprobs: 2 }).catch((error) => error);
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const refused = await client.chat.completions.create({ ...request, model: "nobody" }).catch((error) => error);
const { code, status } = refused;
const { param } = wrong;
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const description = "Get the weather in a city";
const tools = [{ type: "function", function: { name: "get_weather", description, parameters } }];
const asking = { ...request, messages: [{ role: "user", content: "What is the weather in Oslo?" }], tools };
const streaming = client.chat.completions.stream(asking);
const called = (await streaming.finalChatCompletion()).choices[0];
const answering = [...asking.messages, called.message];
answering.push({ role: "tool", tool_call_id: called.message.tool_calls[0].id, content: '{"degrees": 7}' });
const told = (await client.chat.completions.create({ ...asking, messages: answering })).choices[0];
const schema = { enum: [{ word: "yes" }, { word: "no" }] };
const response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
const held = (await client.chat.completions.create({ ...request, response_format })).choices[0];
const answers = { called, told, held, whole };
const seen = { ...answers, text, usage, reason, completion, models, code, status, choices, spelt, scored, param };
console.log(JSON.stringify(seen));
"""

RESPONSES_PROGRAM = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[1] + "/v1", apiKey: "not-needed", maxRetries: 0 });
const request = { model: "demo", input: "Count to 6", temperature: 0 };
const whole = await client.responses.create(request);
const types = [];
let text = "";
for await (const event of await client.responses.create({ ...request, stream: true })) {
  types.push(event.type);
  if (event.type === "response.output_text.delta") text += event.delta;
}
const final = await client.responses.stream(request).finalResponse();
const fetched = await client.responses.retrieve(final.id);
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tool = { type: "function", name: "get_weather", description: "Get the weather in a city", parameters };
const tools = [{ ...tool, strict: false }];
const asking = { ...request, input: "What is the weather in Oslo?", tools };
const called = await client.responses.stream(asking).finalResponse();
const call = called.output.find((item) => item.type === "function_call");
const output = { type: "function_call_output", call_id: call.call_id, output: '{"degrees": 7}' };
const told = await client.responses.create({ ...asking, input: [output], previous_response_id: called.id });
const items = [];
for await (const item of client.responses.inputItems.list(told.id)) items.push(item.type);
const counted = await client.responses.inputTokens.count({ model: "demo", input: asking.input, tools });
const custom = { type: "custom", name: "code", format: { type: "grammar", syntax: "regex", definition: "[0-9]{3}" } };
const choice = { tools: [custom], tool_choice: { type: "custom", name: "code" } };
const coded = (await client.responses.create({ ...request, ...choice })).output.at(-1);
await client.responses.delete(final.id);
const { code, status } = await client.responses.retrieve(final.id).catch((error) => error);
const answers = { whole, final, fetched, call, called, told, coded };
console.log(JSON.stringify({ ...answers, text, types, items, counted, code, status }));
"""


def seen_by(program: str, server: RunningServer) -> dict[str, Any]:
    ran = subprocess.run(
        ["node", "--input-type=module", "-e", program, server.url],
        cwd=install_openai_node(),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    seen: dict[str, Any] = json.loads(ran.stdout)
    return seen


def test_openai_node_gets_the_same_answers_streamed_and_whole(server: RunningServer) -> None:
    seen = seen_by(PROGRAM, server)
    choice = seen["whole"]["choices"][0]
    assert choice["message"]["content"] == seen["text"] == "1, 2, 3, 4, 5, 6"
    assert choice["finish_reason"] == seen["reason"] == "stop"
    assert seen["usage"]["total_tokens"] == seen["whole"]["usage"]["total_tokens"]
    assert seen["completion"]["usage"]["completion_tokens"] == 4
    assert [choice["message"]["content"] for choice in seen["choices"]] == seen["spelt"] == ["1, 2, 3, 4, 5, 6"] * 2
    assert [choice["text"] for choice in seen["scored"]["choices"]] == ["Once", "upon"]
    assert seen["param"] == "top_logprobs"
    assert "demo" in seen["models"]
    (call,) = seen["called"]["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", {"city": "Oslo"})
    assert seen["called"]["finish_reason"] == "tool_calls"
    assert "7" in seen["told"]["message"]["content"]
    assert json.loads(seen["held"]["message"]["content"]) in ({"word": "yes"}, {"word": "no"})
    assert (seen["status"], seen["code"]) == (404, "model_not_found")


def test_openai_node_gets_the_same_responses_streamed_and_whole(server: RunningServer) -> None:
    seen = seen_by(RESPONSES_PROGRAM, server)
    assert seen["whole"]["output_text"] == seen["text"] == seen["final"]["output_text"] == "1, 2, 3, 4, 5, 6"
    assert (seen["types"][0], seen["types"][-1]) == ("response.created", "response.completed")
    assert [item["id"] for item in seen["fetched"]["output"]] == [item["id"] for item in seen["final"]["output"]]
    assert json.loads(seen["call"]["arguments"]) == {"city": "Oslo"}
    assert "7" in seen["told"]["output_text"]
    assert seen["items"] == [
        "function_call_output",
        *reversed([item["type"] for item in seen["called"]["output"]]),
        "message",
    ]
    assert seen["counted"]["input_tokens"] == seen["called"]["usage"]["input_tokens"]
    assert (seen["coded"]["type"], len(seen["coded"]["input"])) == ("custom_tool_call", 3)
    assert (seen["status"], seen["code"]) == (404, "response_not_found")
