// Elements, texts of numbers, and announcements. Text is always text: nothing here parses HTML.

export const $ = (id) => document.getElementById(id);

// `attributes`: on* are listeners, booleans are properties, everything else is an attribute.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean" || name === "value") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const button = (label, onclick, attributes = {}) => h("button", { type: "button", onclick, ...attributes }, label);

export function copyButton(text, of) {
  const copy = button("Copy", async () => {
    await navigator.clipboard.writeText(text());
    copy.textContent = "Copied";
    announce("Copied");
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  }, { class: "small", "aria-label": `Copy ${of}` });
  return copy;
}

// Reads `text` to users of screen readers.
export function announce(text) {
  $("status").textContent = text;
}

export function notice(text) {
  $("notice").hidden = text === "";
  $("notice").replaceChildren(text, ...(text ? [button("Dismiss", () => notice(""), { class: "small" })] : []));
}

export function options(select, ids, chosen, label = (id) => id) {
  select.replaceChildren(...ids.map((id) => h("option", { value: id, selected: id === chosen }, label(id))));
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(Math.max(1, count)) / 10)));
  const value = count / 1024 ** power;
  return `${value.toFixed(power < 2 || value >= 100 ? 0 : 1)} ${units[power]}`;
}

export const count = (value) => Math.round(value).toLocaleString("en");

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export const rate = (value) => (value ? `${value.toFixed(value < 10 ? 1 : 0)}` : "–");
