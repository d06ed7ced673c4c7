// The models view: what is loaded, memory, and the actions of an administrator.

import { json, modelPath } from "./api.js";
import { stackedBar } from "./chart.js";
import { $, announce, button, bytes, count, h, notice } from "./dom.js";
import { feed, follow } from "./feed.js";

let leave = null;
let infos = new Map(); // /v1/models by id
let rows = []; // the models of /admin/pool; of /v1/models without an admin key
let isAdmin = false;
let seen = "";

export function start() {
  $("download").addEventListener("submit", (event) => {
    event.preventDefault();
    act($("repo").value.trim(), "load");
  });
}

export async function shown() {
  await refresh();
  if (isAdmin) leave ??= follow(onFrame);
}

export function hidden() {
  leave?.();
  leave = null;
}

async function refresh() {
  const { data } = await json("v1/models");
  infos = new Map(data.map((model) => [model.id, model]));
  try {
    rows = (await json("admin/pool")).models;
    isAdmin = true;
  } catch (error) {
    if (error.status !== 401 && error.status !== 403) throw error;
    isAdmin = false;
    rows = data.map(({ id, loaded, size_bytes }) => ({ id, size_bytes, state: loaded ? "loaded" : "unloaded" }));
    notice(error.message);
  }
  $("download").hidden = !isAdmin;
  draw();
}

// Asks for the pool again only when a frame shows another set of models.
function onFrame() {
  const { frame, error } = feed;
  if (error) return notice(`No figures from the server: ${error}`);
  const now = JSON.stringify([frame.models.map((model) => model.model_id), frame.loads.map((load) => [load.model_id, load.stage])]);
  if (now !== seen) {
    seen = now;
    refresh().catch((fault) => notice(fault.message));
  }
  drawMemory(frame);
  for (const load of frame.loads) {
    const place = document.querySelector(`[data-progress="${CSS.escape(load.model_id)}"]`);
    place?.replaceChildren(...progressOf(load));
  }
  for (const model of frame.models) {
    const place = document.querySelector(`[data-generations="${CSS.escape(model.model_id)}"]`);
    place?.replaceChildren(generationsOf(model.running_sequences, model.waiting_sequences));
  }
}

function drawMemory(frame) {
  const { weights, kv, prefixes, buffers, used } = feed.history.at(-1);
  const rest = Math.max(0, used - weights - kv - prefixes - buffers);
  const parts = [["weights", weights], ["KV caches", kv], ["prefixes", prefixes], ["buffers", buffers], ["other", rest]];
  $("memory").replaceChildren(stackedBar("Memory budget", parts, frame.limit_bytes, bytes));
}

function draw() {
  const { id, dataset } = document.activeElement;
  $("model-rows").replaceChildren(...rows.map(row));
  if (dataset.model) ($(id) ?? document.querySelector(`[data-model="${CSS.escape(dataset.model)}"]`))?.focus();
}

function row(model) {
  const info = infos.get(model.id) ?? {};
  const { running = 0, waiting = 0 } = model.sequences ?? {};
  const facts = [model.kind ?? info.kind, info.quantization, model.dtype, model.device?.name || model.device?.backend].filter(Boolean);
  return h("tr", {},
    h("th", { scope: "row" }, model.id, h("div", { class: "quiet" }, facts.join(" · "))),
    h("td", {}, stateOf(model), model.error ? h("div", { class: "fault" }, model.error) : null,
      h("div", { "data-progress": model.id }, ...(model.progress ? progressOf(model.progress) : []))),
    h("td", {}, model.size_bytes ? bytes(model.size_bytes) : "not downloaded"),
    h("td", {}, info.context_length ? count(info.context_length) : "–"),
    h("td", { "data-generations": model.id }, generationsOf(running, waiting)),
    h("td", {}, h("div", { class: "row" }, ...(isAdmin ? actionsOf(model) : ["–"]))));
}

const generationsOf = (running, waiting) => (running || waiting ? `${running} running, ${waiting} waiting` : "–");

function stateOf(model) {
  const state = model.state.replaceAll("_", " ");
  return h("span", { class: `state ${model.state}` }, model.pinned ? `${state}, pinned` : state);
}

function progressOf({ stage, done_bytes: done, total_bytes: total }) {
  const meter = h("progress", { max: String(total || 1), "aria-label": stage });
  if (total) meter.value = done;
  return [meter, ` ${stage}${total ? ` ${bytes(done)} of ${bytes(total)}` : ""}`];
}

function actionsOf(model) {
  const action = (verb, label) => button(label, () => act(model.id, verb), { id: `${verb} ${model.id}`, "data-model": model.id, "aria-label": `${label} ${model.id}` });
  const isUp = ["loaded", "loading", "restarting", "not_responding"].includes(model.state);
  const load = action("load", model.size_bytes ? "Load" : "Download and load");
  return [isUp ? action("unload", "Unload") : load, model.pinned ? action("unpin", "Unpin") : action("pin", "Pin")];
}

async function act(id, verb) {
  notice("");
  announce(`${verb} ${id}`);
  try {
    const asked = json(modelPath(id, verb), { method: "POST" });
    if (verb === "load") setTimeout(() => refresh().catch(() => {}), 300); // it answers when the model is loaded
    const model = await asked;
    announce(`${id} is ${model.state}`);
  } catch (error) {
    notice(error.message);
  }
  await refresh().catch((fault) => notice(fault.message));
}
