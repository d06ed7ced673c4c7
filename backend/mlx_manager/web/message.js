// One message of a conversation: its text, reasoning, tool calls, figures and actions.

import { button, copyButton, count, h, rate, seconds } from "./dom.js";
import { render } from "./markdown.js";

const SPEAKERS = { user: "You", tool: "Tool result" };

// `actions` are the functions of the chat: edit, regenerate, select and answerCall. The view has `element`, and
// `update` for a message that grows.
export function messageView(node, siblings, actions) {
  const reasoning = h("details", { class: "reasoning", hidden: true }, h("summary", {}, "Reasoning"), h("div", { class: "plain" }));
  const content = h("div", { class: node.role === "assistant" ? "rich" : "plain" });
  const calls = h("div", { class: "calls" });
  const fault = h("p", { class: "fault", role: "alert", hidden: true });
  const figures = h("p", { class: "figures-line quiet" });
  const tools = h("div", { class: "row actions" });
  const speaker = h("h2", { class: "speaker" }, SPEAKERS[node.role] ?? node.model);
  const element = h("li", { class: `message ${node.role}` }, speaker, reasoning, content, calls, fault, figures, tools);

  function update(running = false) {
    element.setAttribute("aria-busy", String(running));
    reasoning.hidden = !node.reasoning;
    reasoning.lastChild.textContent = node.reasoning ?? "";
    content.replaceChildren(node.role === "assistant" ? render(node.content) : node.content);
    calls.replaceChildren(...(node.calls ?? []).map((call) => callView(node, call, running, actions)));
    fault.hidden = !node.error;
    fault.textContent = node.error ?? "";
    figures.textContent = running ? (node.content || node.reasoning ? "…" : "Waiting for the first token") : figuresOf(node);
    tools.replaceChildren(...(running ? [] : actionsOf(node, siblings, content, actions)));
  }

  update();
  return { element, update };
}

function callView(node, call, running, { answerCall }) {
  const result = h("textarea", { rows: "2", "aria-label": `Result of ${call.name}` });
  const answer = h("form", { class: "row", onsubmit: (event) => {
    event.preventDefault();
    answerCall(node, call, result.value);
  } }, result, h("button", {}, "Send result"));
  return h("div", { class: "call" },
    h("p", {}, "Calls ", h("code", {}, call.name)),
    h("pre", { tabindex: "0" }, readable(call.arguments)),
    running || node.answered?.includes(call.id) ? null : answer);
}

function readable(argumentsText) {
  try {
    return JSON.stringify(JSON.parse(argumentsText), null, 2);
  } catch {
    return argumentsText;
  }
}

function figuresOf({ figures, finish }) {
  if (!figures) return "";
  const { firstToken, perSecond, prompt, cached, completion, miss } = figures;
  const parts = [
    perSecond && `${rate(perSecond)} tokens/s`,
    firstToken !== undefined && `first token after ${seconds(firstToken)}`,
    completion !== undefined && `${count(completion)} tokens`,
    prompt !== undefined && `prompt ${count(prompt)}, ${count(cached)} of them cached`,
    miss && `prefix missed: ${miss}`,
    finish && finish !== "stop" && `finish reason ${finish}`,
  ];
  return parts.filter(Boolean).join(" · ");
}

function actionsOf(node, siblings, content, { edit, regenerate, select }) {
  const place = siblings.indexOf(node);
  const branches = [
    button("‹", () => select(siblings[place - 1]), { class: "small", "aria-label": "Previous branch", disabled: place === 0 }),
    h("span", { class: "quiet" }, `${place + 1} of ${siblings.length}`),
    button("›", () => select(siblings[place + 1]), { class: "small", "aria-label": "Next branch", disabled: place === siblings.length - 1 }),
  ];
  return [
    ...(siblings.length > 1 ? branches : []),
    copyButton(() => node.content, "message"),
    node.role === "user" ? button("Edit", () => startEditing(node, content, edit), { class: "small" }) : null,
    node.role === "assistant" ? button("Regenerate", () => regenerate(node), { class: "small" }) : null,
  ].filter(Boolean);
}

function startEditing(node, content, edit) {
  const text = h("textarea", { rows: "4", "aria-label": "Edit message", value: node.content });
  const form = h("form", { onsubmit: (event) => {
    event.preventDefault();
    edit(node, text.value);
  } }, text, h("p", { class: "row" }, h("button", { class: "primary" }, "Send edited"),
    button("Cancel", () => content.replaceChildren(node.content))));
  content.replaceChildren(form);
  text.focus();
}
