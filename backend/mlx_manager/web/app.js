// Starts the page: views by the address's #, keys, and the theme.

import { forgetKeys, hasKeys, onKeyNeeded } from "./api.js";
import * as chat from "./chat.js";
import * as connect from "./connect.js";
import { $, notice } from "./dom.js";
import * as live from "./live.js";
import * as models from "./models.js";

const VIEWS = { chat, models, live, connect };
const THEME = "mlx-manager.theme";
let current = null;

async function show() {
  if (location.hash === "#main" && current) return; // the skip link
  const name = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "chat";
  if (current !== name) VIEWS[current]?.hidden?.();
  current = name;
  for (const id of Object.keys(VIEWS)) $(id).hidden = id !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · MLX Manager`;
  notice("");
  try {
    await VIEWS[name].shown();
  } catch (error) {
    notice(error.message);
  }
}

// One dialog for both kinds of key.
function askKey(kind, reason) {
  const dialog = $("ask-key");
  $("ask-key-title").textContent = kind === "admin" ? "Admin key" : "API key";
  $("ask-key-reason").textContent = reason;
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = dialog.returnValue === "use" ? $("key").value.trim() : "";
      $("key").value = "";
      $("forget").hidden = !hasKeys() && key === "";
      resolve(key || null);
    }, { once: true });
  });
}

function useTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").value = theme;
}

onKeyNeeded(askKey);
useTheme(localStorage.getItem(THEME) ?? "");
$("theme").addEventListener("change", () => {
  localStorage.setItem(THEME, $("theme").value);
  useTheme($("theme").value);
});
$("forget").hidden = !hasKeys();
$("forget").addEventListener("click", () => {
  forgetKeys();
  location.reload();
});
addEventListener("hashchange", show);
for (const view of Object.values(VIEWS)) await view.start();
await show();
