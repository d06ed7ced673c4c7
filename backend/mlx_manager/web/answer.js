// One streamed answer: sends a conversation, fills a message with what comes, and measures it. Knows no elements.

import { events, request } from "./api.js";

// Fills `node` and calls `grew` for each piece. Resolves when the answer ends, is stopped or fails.
export async function stream(body, node, signal, grew) {
  const began = performance.now();
  let firstAt, lastAt, usage;
  try {
    const asked = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await request("v1/chat/completions", { method: "POST", body: asked, signal });
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      const [choice] = chunk.choices ?? [];
      if (choice && take(node, choice)) {
        lastAt = performance.now();
        firstAt ??= lastAt;
      }
      grew();
    }
  } catch (error) {
    if (error.name === "AbortError") node.finish = "stopped";
    else node.error = error.message;
  }
  node.figures = figures(began, firstAt, lastAt, usage);
}

// Whether the choice brought a piece of the answer.
function take(node, { delta = {}, finish_reason: finish }) {
  if (finish) node.finish = finish;
  const reasoning = delta.reasoning_content ?? delta.reasoning;
  const text = delta.content ?? delta.refusal;
  if (reasoning) node.reasoning = (node.reasoning ?? "") + reasoning;
  if (text) node.content += text;
  for (const { index, id, function: called } of delta.tool_calls ?? []) {
    node.calls ??= [];
    node.calls[index] ??= { id, name: "", arguments: "" };
    node.calls[index].name += called?.name ?? "";
    node.calls[index].arguments += called?.arguments ?? "";
  }
  return Boolean(reasoning || text || delta.tool_calls);
}

function figures(began, firstAt, lastAt, usage) {
  const found = {};
  if (firstAt !== undefined) found.firstToken = (firstAt - began) / 1000;
  if (!usage) return found;
  found.prompt = usage.prompt_tokens;
  found.completion = usage.completion_tokens;
  found.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const miss = usage.prompt_tokens_details?.cache_miss;
  if (miss) found.miss = `${miss.reason}, ${miss.missed_tokens} tokens`;
  if (found.completion > 1 && lastAt > firstAt) found.perSecond = ((found.completion - 1) * 1000) / (lastAt - firstAt);
  return found;
}
