// The live view: figures, charts and the last requests.

import { lineChart } from "./chart.js";
import { $, bytes, count, h, notice, rate, seconds } from "./dom.js";
import { feed, follow } from "./feed.js";

const CHARTS = [
  [lineChart("Tokens per second", ["all models"], rate), ["rate"]],
  [lineChart("Generations", ["running", "waiting"], count), ["running", "waiting"]],
  [lineChart("Memory", ["used", "weights", "KV caches", "prefixes"], bytes), ["used", "weights", "kv", "prefixes"]],
];
const WINDOW_SECONDS = 600;
let leave = null;
let newest = -1;

export function start() {
  $("charts").append(...CHARTS.map(([chart]) => chart.element));
}

export function shown() {
  leave ??= follow(draw);
}

export function hidden() {
  leave?.();
  leave = null;
}

function draw() {
  if (feed.error) return notice(`No figures from the server: ${feed.error}`);
  for (const [chart, names] of CHARTS) chart.update(names.map((name) => feed.history.map((past) => past[name])));
  $("figures").replaceChildren(...figures().map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  const last = feed.requests[0]?.number ?? 0;
  if (last !== newest) $("request-rows").replaceChildren(...feed.requests.map(row));
  newest = last;
  const project = feed.frame.project_url;
  const link = project ? [h("a", outside(project), "LogFire project"), " has the traces of all requests."] : [];
  $("traces").replaceChildren(...link);
}

function figures() {
  const now = feed.history.at(-1);
  const recent = feed.requests.filter((request) => feed.frame.time - request.ended_at < WINDOW_SECONDS);
  const firsts = recent.map((request) => request.time_to_first_token).filter((value) => value !== null).sort((one, other) => one - other);
  const prompt = recent.reduce((sum, request) => sum + request.prompt_tokens, 0);
  const cached = recent.reduce((sum, request) => sum + request.cached_tokens, 0);
  return [
    ["Tokens per second", rate(now.rate)],
    ["Running", count(now.running)],
    ["Waiting", count(now.waiting)],
    ["First token, p50", seconds(share(firsts, 0.5))],
    ["First token, p95", seconds(share(firsts, 0.95))],
    ["Prompt tokens from cache", prompt ? `${Math.round((100 * cached) / prompt)} %` : "–"],
    ["Memory", `${bytes(now.used)} of ${bytes(feed.frame.limit_bytes)}`],
  ];
}

const share = (sorted, part) => sorted[Math.max(0, Math.ceil(part * sorted.length) - 1)];
const outside = (href) => ({ href, target: "_blank", rel: "noopener noreferrer" });

function row(request) {
  const { prompt_tokens: prompt, cached_tokens: cached, completion_tokens: completion } = request;
  const missed = request.missed_tokens ? `prefix missed ${count(request.missed_tokens)} tokens: ` : "prefix ";
  const notes = [request.error ?? request.finish_reason, request.cache_miss && missed + request.cache_miss.replaceAll("_", " "),
    request.load_seconds && `load ${seconds(request.load_seconds)}`, request.queue_seconds > 0.1 && `queue ${seconds(request.queue_seconds)}`,
    request.key && `key ${request.key}`].filter(Boolean).join(", ");
  const trace = request.trace_url ? [" ", h("a", { ...outside(request.trace_url), "aria-label": `Trace of request ${request.number}` }, "trace")] : [];
  return h("tr", {},
    h("td", {}, new Date(request.ended_at * 1000).toLocaleTimeString()),
    h("td", { class: request.status >= 400 ? "fault" : null }, String(request.status)),
    h("td", {}, request.model ?? request.path),
    h("td", {}, prompt ? count(prompt) : "–"),
    h("td", {}, prompt ? count(cached) : "–"),
    h("td", {}, completion ? count(completion) : "–"),
    h("td", {}, seconds(request.time_to_first_token)),
    h("td", {}, seconds(request.seconds)),
    h("td", {}, rate(request.tokens_per_second)),
    h("td", {}, notes || "–", ...trace));
}
