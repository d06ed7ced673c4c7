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


def test_openai_node_gets_the_same_answers_streamed_and_whole(server: RunningServer) -> None:
    ran = subprocess.run(
        ["node", "--input-type=module", "-e", PROGRAM, server.url],
        cwd=install_openai_node(),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    seen: dict[str, Any] = json.loads(ran.stdout)
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
