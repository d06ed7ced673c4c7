// A conversation as a tree of messages: editing and regenerating add a sibling, and `selected` names the shown branch.
// Pure: knows neither the page nor the server.

export const ROOT = "root";

export function newChat() {
  return { id: crypto.randomUUID(), title: "New chat", updated: Date.now(), nodes: {}, selected: {} };
}

export function add(chat, parent, message) {
  const node = { ...message, id: crypto.randomUUID(), parent };
  chat.nodes[node.id] = node;
  chat.selected[parent] = node.id;
  chat.updated = Date.now();
  if (message.role === "user" && parent === ROOT) chat.title = message.content.trim().slice(0, 60) || "New chat";
  return node;
}

export const siblings = (chat, node) => Object.values(chat.nodes).filter((other) => other.parent === node.parent);

// The messages of the shown branch.
export function branch(chat) {
  const shown = [];
  for (let id = chat.selected[ROOT]; id !== undefined; id = chat.selected[id]) shown.push(chat.nodes[id]);
  return shown;
}

// The messages from the first to `id`, in OpenAI's format.
export function messagesUpTo(chat, id, system) {
  const messages = [];
  for (let node = chat.nodes[id]; node !== undefined; node = chat.nodes[node.parent]) messages.unshift(asMessage(node));
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

function asMessage({ role, content, calls, callId }) {
  if (role === "tool") return { role, content, tool_call_id: callId };
  if (role !== "assistant" || !calls?.length) return { role, content };
  const functions = calls.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
  return { role, content: content || null, tool_calls: functions };
}
