// The frames of /admin/live, with what the page remembers of them: ten minutes of figures, and the last requests.

import { events, request } from "./api.js";

const KEPT_FRAMES = 600;
const KEPT_REQUESTS = 200;
const RETRY_MILLISECONDS = 3000;

export const feed = { frame: null, history: [], requests: [], error: null };
const readers = new Set();
let controller = null;

// Calls `read` after each frame and at each failure, until the returned function is called.
export function follow(read) {
  readers.add(read);
  if (feed.frame) read();
  if (controller === null) receive();
  return () => {
    readers.delete(read);
    if (readers.size === 0) controller?.abort();
  };
}

async function receive() {
  const own = (controller = new AbortController());
  let again = true;
  try {
    const response = await request("admin/live", { signal: own.signal });
    feed.requests = [];
    for await (const frame of events(response)) take(frame);
  } catch (error) {
    again = !(error.status >= 400 && error.status < 500); // without a key there is no use in asking again
    if (error.name !== "AbortError") feed.error = error.message;
    readers.forEach((read) => read());
  }
  controller = null;
  if (again && readers.size) setTimeout(() => readers.size && controller === null && receive(), RETRY_MILLISECONDS);
}

function take(frame) {
  feed.error = null;
  feed.frame = frame;
  feed.requests = [...frame.requests.reverse(), ...feed.requests].slice(0, KEPT_REQUESTS);
  const sum = (name) => frame.models.reduce((total, model) => total + model[name], 0);
  feed.history.push({
    time: frame.time,
    used: frame.used_bytes,
    rate: sum("tokens_per_second"),
    running: sum("running_sequences"),
    waiting: sum("waiting_sequences"),
    weights: sum("weights_bytes"),
    kv: sum("kv_cache_bytes"),
    prefixes: sum("prefix_cache_bytes"),
    buffers: sum("mlx_cache_bytes"),
  });
  if (feed.history.length > KEPT_FRAMES) feed.history.shift();
  readers.forEach((read) => read());
}
