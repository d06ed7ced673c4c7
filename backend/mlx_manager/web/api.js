// Requests to the server: keys, errors and server-sent events. Knows no views.

const NAMES = { user: "mlx-manager.key", admin: "mlx-manager.admin-key" };
let asking = null;
let askKey = async () => null;

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// `ask(kind, reason)` resolves to a key, or to null when the user declines.
export function onKeyNeeded(ask) {
  askKey = ask;
}

export const hasKeys = () => Object.values(NAMES).some((name) => sessionStorage.getItem(name) !== null);

export function forgetKeys() {
  Object.values(NAMES).forEach((name) => sessionStorage.removeItem(name));
}

// The response of a path relative to the page. Asks for a key when the server refuses the one that it was sent.
export async function request(path, { body, ...init } = {}) {
  const kind = path.startsWith("admin/") ? "admin" : "user";
  for (;;) {
    const key = keyFor(kind);
    const headers = { accept: "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
    if (body !== undefined) headers["content-type"] = "application/json";
    const sent = body === undefined ? undefined : JSON.stringify(body);
    const response = await fetch(path, { ...init, headers, body: sent });
    if (response.ok) return response;
    const error = new ApiError(response.status, await messageOf(response));
    if (response.status !== 401 || !(await newKey(kind, key, error.message))) throw error;
  }
}

export const json = async (path, init) => (await request(path, init)).json();

export const modelPath = (id, action) => `admin/models/${id.split("/").map(encodeURIComponent).join("/")}/${action}`;

// The parsed `data:` payloads of a response, until [DONE] or its end.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

function keyFor(kind) {
  const [first, second] = kind === "admin" ? ["admin", "user"] : ["user", "admin"];
  return sessionStorage.getItem(NAMES[first]) ?? sessionStorage.getItem(NAMES[second]);
}

// Several requests may be refused at once: one question answers them all.
async function newKey(kind, refused, reason) {
  if (keyFor(kind) !== refused) return true;
  asking ??= askKey(kind, reason).finally(() => (asking = null));
  const key = await asking;
  if (key) sessionStorage.setItem(NAMES[kind], key);
  return key !== null;
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}`;
  }
}
