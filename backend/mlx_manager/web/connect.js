// The connect view: the settings of each client for a model, to be copied.

import { json } from "./api.js";
import { $, copyButton, h, notice, options } from "./dom.js";

let clients = [];

export function start() {
  $("connect-model").addEventListener("change", () => load().catch((error) => notice(error.message)));
  $("client").addEventListener("change", draw);
}

export async function shown() {
  const { data } = await json("v1/models");
  const ids = data.filter((model) => !["embed", "rerank"].includes(model.kind)).map(({ id }) => id);
  options($("connect-model"), ids, $("connect-model").value || ids[0]);
  await load();
}

async function load() {
  const root = new URL(".", location.href).href.replace(/\/$/, "");
  const query = new URLSearchParams({ model: $("connect-model").value, root });
  clients = await json(`ui/setups?${query}`);
  options($("client"), clients.map(({ name }) => name), $("client").value || clients[0].name);
  draw();
}

function draw() {
  const { name, install, steps } = clients.find((client) => client.name === $("client").value);
  const shown = [{ title: `Install ${name}`, text: install }, ...steps];
  $("setup").replaceChildren(...shown.flatMap(({ title, text }) => [
    h("h2", {}, title),
    h("div", { class: "code" }, h("pre", { tabindex: "0" }, text), copyButton(() => text, title)),
  ]));
}
