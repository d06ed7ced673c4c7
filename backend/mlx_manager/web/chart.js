// Line charts and a stacked bar, as SVG and elements. Their newest values are also text, for those who cannot see them.

import { h } from "./dom.js";

const [WIDTH, HEIGHT] = [300, 80];
const svg = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

// A chart of one or several lines. `update(rows)` takes the values of each line, oldest first.
export function lineChart(title, lines, format) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const paths = lines.map((_, place) => svg("polyline", { class: `line line-${place}`, "vector-effect": "non-scaling-stroke" }));
  picture.append(...paths);
  const legend = h("figcaption");
  const element = h("figure", { class: "chart" }, h("h3", {}, title), picture, legend);
  return {
    element,
    update(rows) {
      const top = Math.max(...rows.flat(), 1e-9);
      rows.forEach((values, place) => paths[place].setAttribute("points", points(values, top)));
      legend.replaceChildren(...lines.flatMap((name, place) => [
        h("span", { class: `swatch line-${place}` }), `${name} ${format(rows[place].at(-1) ?? 0)}  `,
      ]), h("span", { class: "quiet" }, `highest ${format(top < 1e-6 ? 0 : top)}`));
      picture.setAttribute("aria-label", `${title} over the last ${rows[0].length} seconds: ${legend.textContent}`);
    },
  };
}

function points(values, top) {
  const step = WIDTH / Math.max(1, values.length - 1);
  return values.map((value, place) => `${(place * step).toFixed(1)},${(HEIGHT - 2 - (value / top) * (HEIGHT - 4)).toFixed(1)}`).join(" ");
}

// A bar of `parts` ([name, amount]) out of `total`, with their amounts below it.
export function stackedBar(title, parts, total, format) {
  const taken = parts.map(([, amount], place) => {
    const part = h("span", { class: `part line-${place}` });
    part.style.width = `${(100 * amount) / Math.max(1, total)}%`;
    return part;
  });
  const used = parts.reduce((sum, [, amount]) => sum + amount, 0);
  const legend = parts.flatMap(([name, amount], place) => [
    h("li", {}, h("span", { class: `swatch line-${place}` }), `${name} ${format(amount)}`),
  ]);
  return h("figure", { class: "memory" },
    h("figcaption", {}, `${title}: ${format(used)} of ${format(total)}`),
    h("div", { class: "stack", "aria-hidden": "true" }, ...taken),
    h("ul", { class: "legend" }, ...legend));
}
