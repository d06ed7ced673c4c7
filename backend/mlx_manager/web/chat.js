// The chat view: the list of chats, the shown branch, the composer and the parameters.

import { stream } from "./answer.js";
import { json } from "./api.js";
import { ROOT, add, branch, messagesUpTo, newChat, siblings } from "./conversation.js";
import { $, announce, button, h, options } from "./dom.js";
import { messageView } from "./message.js";
import { allChats, deleteChat, saveChat } from "./store.js";

const SAVE_MILLISECONDS = 2000;
const PARAMETERS = "mlx-manager.parameters";
const MODEL = "mlx-manager.model";
const FIELDS = [...$("parameters").querySelectorAll("[name]")];
let chats = [];
let chat = newChat();
let running = null; // { chat, node, controller } of the answer that is streamed

export async function start() {
  restoreParameters();
  $("chats").open = matchMedia("(min-width: 50rem)").matches;
  $("new-chat").addEventListener("click", () => show(newChat()));
  $("model").addEventListener("change", () => localStorage.setItem(MODEL, $("model").value));
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $("stop").addEventListener("click", stop);
  $("chat").addEventListener("keydown", (event) => event.key === "Escape" && stop());
  chats = await allChats();
  show(chats[0] ?? chat);
}

export async function shown() {
  const { data } = await json("v1/models");
  const able = data.filter((model) => model.capabilities?.chat !== false && !["embed", "rerank"].includes(model.kind));
  const ids = able.map(({ id }) => id);
  const missing = new Set(able.filter((model) => model.owned_by === "mlx-manager" && model.size_bytes === null).map(({ id }) => id));
  const kept = $("model").value || localStorage.getItem(MODEL);
  options($("model"), ids, ids.includes(kept) ? kept : ids[0], (id) => (missing.has(id) ? `${id} (not downloaded)` : id));
}

function show(next) {
  chat = next;
  listChats();
  showMessages();
}

function listChats() {
  $("chat-list").replaceChildren(...chats.map((one) => h("li", { class: "row" },
    button(one.title, () => show(one), { class: "title", "aria-current": one === chat ? "true" : null }),
    button("✕", () => remove(one), { class: "small", "aria-label": `Delete chat ${one.title}` }))));
}

async function remove(one) {
  if (running?.chat === one) stop();
  chats = chats.filter((other) => other !== one);
  await deleteChat(one.id);
  show(one === chat ? (chats[0] ?? newChat()) : chat);
}

function showMessages() {
  const views = branch(chat).map((node) => {
    const view = messageView(node, siblings(chat, node), { edit, regenerate, select, answerCall });
    if (running?.node === node) running.view = view;
    return view.element;
  });
  $("messages").replaceChildren(...views);
  showRunning();
  $("messages").lastElementChild?.scrollIntoView({ block: "end" });
}

function showRunning() {
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  running?.view?.update(true);
}

const isReady = () => running === null && readParameters() !== null;

function send() {
  const content = $("prompt").value.trim();
  if (!content || !isReady()) return;
  $("prompt").value = "";
  const parent = branch(chat).at(-1)?.id ?? ROOT;
  answerTo(add(chat, parent, { role: "user", content }));
}

function edit(node, content) {
  if (!content.trim() || !isReady()) return;
  answerTo(add(chat, node.parent, { role: "user", content: content.trim() }));
}

function regenerate(node) {
  if (isReady()) answerTo(chat.nodes[node.parent]);
}

function select(node) {
  chat.selected[node.parent] = node.id;
  saveChat(chat);
  showMessages();
}

// The model goes on when each of its calls has a result.
function answerCall(node, call, content) {
  if (!isReady()) return;
  node.answered = [...(node.answered ?? []), call.id];
  const result = add(chat, branch(chat).at(-1).id, { role: "tool", content, callId: call.id });
  if (node.answered.length === node.calls.length) answerTo(result);
  else showMessages();
}

async function answerTo(asked) {
  const { system, more, ...sampling } = readParameters();
  const model = $("model").value;
  const body = { model, messages: messagesUpTo(chat, asked.id, system), ...sampling, ...more };
  const node = add(chat, asked.id, { role: "assistant", content: "", model });
  running = { chat, node, controller: new AbortController() };
  if (!chats.includes(chat)) chats.unshift(chat);
  listChats();
  showMessages();
  announce(`${model} is answering`);
  const saving = setInterval(() => saveChat(running.chat), SAVE_MILLISECONDS);
  await stream(body, node, running.controller.signal, growing());
  clearInterval(saving);
  const { chat: answered } = running;
  running = null;
  saveChat(answered);
  if (answered === chat) showMessages();
  else showRunning();
  announce(node.error ? `The answer failed: ${node.error}` : "The answer is complete");
}

// Draws at most once a frame, and leaves most of the time to the rest of the page when an answer is long.
function growing() {
  let due = 0;
  let asked = false;
  return () => {
    if (asked || performance.now() < due) return;
    asked = true;
    requestAnimationFrame((now) => {
      asked = false;
      if (running?.chat !== chat) return;
      const atEnd = innerHeight + scrollY > document.body.scrollHeight - 120;
      running.view.update(true);
      if (atEnd) scrollTo(0, document.body.scrollHeight);
      due = performance.now() + 4 * (performance.now() - now);
    });
  };
}

function stop() {
  running?.controller.abort();
}

// What the fields say: null, with the fault shown, when the JSON of the last field is not an object.
function readParameters() {
  const values = Object.fromEntries(FIELDS.map((field) => [field.name, field.value.trim()]));
  localStorage.setItem(PARAMETERS, JSON.stringify(values));
  const { system, more, reasoning_effort: effort, ...numbers } = values;
  const given = Object.entries(numbers).filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)]);
  const fault = $("parameters-fault");
  fault.hidden = true;
  try {
    const parsed = JSON.parse(more || "{}");
    if (parsed === null || typeof parsed !== "object" || Array.isArray(parsed)) throw new Error("it is not an object");
    return { system, more: parsed, ...Object.fromEntries(given), ...(effort ? { reasoning_effort: effort } : {}) };
  } catch (error) {
    $("parameters").open = true;
    fault.hidden = false;
    fault.textContent = `The further fields are not a JSON object: ${error.message}. Correct or empty them.`;
    return null;
  }
}

function restoreParameters() {
  const kept = JSON.parse(localStorage.getItem(PARAMETERS) ?? "{}");
  for (const field of FIELDS) field.value = kept[field.name] ?? "";
}
